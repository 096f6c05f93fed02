"""The small print below the loop: making sockets, what errors mean, what the selector watches, the signal table.

Start with `watchlist` and `signaltable`, which belong to `loop` and `signals`, and `congestion`, which belongs to
`datagram`. Then read `addresses`, `opening`, `errors`, `wakeup`, `seconds` and `pktinfo` (control data). `factory`
declares what the core needs of the system; `wrapped_selector` helps to wrap a selector.
"""
