#lang racket
(define l(tcp-listen 7 99 #t))
(define u(udp-open-socket))
(udp-bind! u #f 7)
(define b(make-bytes 65536))
(thread(λ()(let f()(let-values([(n h p)(udp-receive! u b)])(udp-send-to u h p b 0 n))(f))))
(let f()(let-values([(i o)(tcp-accept l)])(thread(λ()(copy-port i o)(close-output-port o))))(f))