"""Echo as an asyncio Protocol. `python3 asyncio_echo.py tcp|udp HOST PORT [uvloop] [buffered]`."""

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


class BufferedEcho(asyncio.BufferedProtocol):
    """Write received bytes back. All connections receive into one buffer, and `write` gets a copy, which it keeps."""

    buffer = memoryview(bytearray(256 * 1024))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport's method."""
        self.write = cast(asyncio.Transport, transport).write

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Echo."""
        self.write(bytes(self.buffer[:nbytes]))


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
        protocol = BufferedEcho if "buffered" in sys.argv[4:] else Echo
        server = await loop.create_server(protocol, host, port, backlog=4096)
        await server.serve_forever()
    await loop.create_datagram_endpoint(DatagramEcho, local_addr=(host, port))
    await asyncio.Event().wait()


serving = main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
if "uvloop" in sys.argv[4:]:
    import uvloop

    uvloop.run(serving)
else:
    asyncio.run(serving)
