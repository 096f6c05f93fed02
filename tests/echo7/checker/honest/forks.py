"""An honest server: a process for each connection and for each datagram. Arguments: HOST PORT [SECONDS of delay]."""

import os
import signal
import socket
import sys
import time


def serve(connection: socket.socket) -> None:
    """Echo until the client ends."""
    while data := connection.recv(65_536):
        time.sleep(DELAY_S)
        connection.sendall(data)


def main() -> None:
    """Serve both transports until the process ends."""
    address = (sys.argv[1], int(sys.argv[2]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave no trace
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(address)
    listener = socket.create_server(address)
    if os.fork():
        while True:
            data, source = datagrams.recvfrom(65_536)
            if not os.fork():
                time.sleep(DELAY_S)
                datagrams.sendto(data, source)
                os._exit(0)
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            try:
                serve(connection)
            finally:
                os._exit(0)
        connection.close()


DELAY_S = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
main()
