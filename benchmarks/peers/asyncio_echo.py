"""Echo as an asyncio Protocol, the fastest idiomatic form. `python3 asyncio_echo.py tcp|udp HOST PORT [uvloop]`."""

import asyncio
import sys
from typing import cast


class Echo(asyncio.Protocol):
    """Write received bytes back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport's method."""
        self.write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self.write(data)


class DatagramEcho(asyncio.DatagramProtocol):
    """Answer every datagram."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport's method."""
        self.sendto = cast(asyncio.DatagramTransport, transport).sendto

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        """Echo."""
        self.sendto(data, source)


async def main(kind: str, host: str, port: int) -> None:
    """Serve until the process is killed."""
    loop = asyncio.get_running_loop()
    if kind == "tcp":
        server = await loop.create_server(Echo, host, port, backlog=4096)
        await server.serve_forever()
    await loop.create_datagram_endpoint(DatagramEcho, local_addr=(host, port))
    await asyncio.Event().wait()


serving = main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
if "uvloop" in sys.argv[4:]:
    import uvloop

    uvloop.run(serving)
else:
    asyncio.run(serving)
