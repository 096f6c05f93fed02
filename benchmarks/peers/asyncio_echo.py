"""TCP echo as an asyncio Protocol, the fastest idiomatic form. `python3 asyncio_echo.py PORT`."""

import asyncio
import sys


class Echo(asyncio.Protocol):
    """Write back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self.write(data)


async def main(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1])))
