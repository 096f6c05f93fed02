"""Echo on trio: a task for each connection. `python3 trio_echo.py tcp|udp HOST PORT`."""

import sys

import trio


async def echo(stream: trio.SocketStream) -> None:
    """Write received bytes back until the client closes."""
    try:
        while data := await stream.receive_some(65_536):
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # the client has closed


async def serve_udp(host: str, port: int) -> None:
    """Answer every datagram."""
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sock.bind((host, port))
    while True:
        data, source = await sock.recvfrom(65_535)
        await sock.sendto(data, source)


async def main(kind: str, host: str, port: int) -> None:
    """Serve until the process is killed."""
    if kind == "tcp":
        await trio.serve_tcp(echo, port, host=host, backlog=4096)
    else:
        await serve_udp(host, port)


trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
