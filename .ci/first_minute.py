"""Serve, echo, stop; take a lesson, check an exercise, see the gallery: what a new user tries. Argument: the Python.

All of it with the standard library alone (`python3 -S`).
"""

import re
import signal
import socket
import subprocess
import sys
import tempfile

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


def said(*arguments: str, status: int = 0) -> str:
    """Return what a command of reactor's says."""
    done = subprocess.run(
        [sys.argv[1], "-S", "-m", *arguments], check=False, capture_output=True, text=True, timeout=99
    )
    assert (done.returncode, done.stderr) == (status, ""), done
    return done.stdout


with tempfile.NamedTemporaryFile("w", suffix=".py") as mine:
    lesson = said("reactor.lessons", "5")
    assert lesson.count("BROKEN") == 2, lesson
    assert lesson.count("kept ") == 1, lesson
    mine.write(said("reactor.lessons", "5", "--exercise"))
    mine.flush()
    judgement = said("reactor.lessons", "5", "--check", mine.name, status=1)
    assert judgement.endswith("4 of 5 kept, 1 broken\n"), judgement
    assert "</html>" in said("reactor.player", "--gallery", "-o", "-")
print("first minute: a lesson taken, an exercise judged, the gallery made")
