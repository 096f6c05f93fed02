"""The small print below the loop: making sockets, what errors mean, what the selector watches, the signal table."""
