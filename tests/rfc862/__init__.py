"""The promises of RFC 862 and of the RFCs below it, on real sockets."""
