#lang racket/base
;; Echo in Racket: a green thread for each connection, copy-port between its two ports.
;; `racket echo.rkt tcp|udp HOST PORT`
(require racket/port racket/tcp racket/udp)

(define (echo in out)
  (file-stream-buffer-mode out 'none)
  (with-handlers ([exn:fail? void]) ; the client may close at any time
    (copy-port in out))
  (with-handlers ([exn:fail? void]) (close-output-port out))
  (close-input-port in))

(define (serve-tcp host port)
  (define listener (tcp-listen port 4096 #t host))
  (let loop ()
    (define-values (in out) (tcp-accept listener))
    (thread (lambda () (echo in out)))
    (loop)))

(define (serve-udp host port)
  (define socket (udp-open-socket))
  (define buffer (make-bytes 65535))
  (udp-bind! socket host port)
  (let loop ()
    (define-values (size from-host from-port) (udp-receive! socket buffer))
    (udp-send-to socket from-host from-port buffer 0 size)
    (loop)))

(module+ main
  (define arguments (current-command-line-arguments))
  (define host (vector-ref arguments 1))
  (define port (string->number (vector-ref arguments 2)))
  (if (equal? (vector-ref arguments 0) "tcp") (serve-tcp host port) (serve-udp host port)))
