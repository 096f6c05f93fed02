"""Start `python3 -S -m echo7 serve` as a newcomer would, echo over TCP and UDP, and stop it. Argument: the Python."""

import re
import signal
import socket
import subprocess
import sys

command = [sys.argv[1], "-S", "-m", "echo7", "serve", "--host", "127.0.0.1", "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
assert server.stderr is not None
try:
    found = None
    while found is None:
        found = re.search(r"tcp 127\.0\.0\.1:(\d+)$", server.stderr.readline())
    address = ("127.0.0.1", int(found[1]))
    with socket.create_connection(address, 10) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        received = b""
        while piece := client.recv(100):
            received += piece
    assert received == b"hello", received
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"", address)
        assert client.recv(100) == b""
    server.send_signal(signal.SIGTERM)
    status = server.wait(20)
    assert status == 0, status
finally:
    server.kill()
print("first minute: echoed and stopped")
