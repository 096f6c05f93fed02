/* The minimum: an echo in C on epoll(7), with one receive and one send for each event.
 *
 *     epoll_echo tcp|udp|batches HOST PORT
 *
 * `batches` is UDP with recvmmsg and sendmmsg, answering from the address asked (IP_PKTINFO).
 * After a partial write the rest waits in the connection's buffer, and nothing is read from that connection until the
 * buffer is empty. A datagram that can't be sent is dropped.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_BYTES (256 * 1024)
#define BATCH 64

/* A connection and its unsent bytes. Most connections have none, so the buffer is made when it is first needed. */
struct connection { int fd; char *bytes; size_t begin, end; };

static char inbox[MOST_BYTES];
static int poller;

static void watch(struct connection *c, int operation, unsigned interest) {
    struct epoll_event event = {.events = interest, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &event);
}

static void end(struct connection *c) {
    close(c->fd);
    free(c->bytes);
    free(c);
}

static void keep(struct connection *c, const char *bytes, size_t size) {
    if (!c->bytes && !(c->bytes = malloc(MOST_BYTES))) { end(c); return; }
    memcpy(c->bytes, bytes, size);
    c->begin = 0;
    c->end = size;
    watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

static void echo(struct connection *c) {
    ssize_t n = recv(c->fd, inbox, sizeof inbox, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { end(c); return; }
    ssize_t sent = send(c->fd, inbox, n, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) sent = 0;
    if (sent < 0) end(c);
    else if (sent < n) keep(c, inbox + sent, n - sent);
}

static void flush(struct connection *c) {
    ssize_t sent = send(c->fd, c->bytes + c->begin, c->end - c->begin, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) { end(c); return; }
    c->begin += sent;
    if (c->begin == c->end) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void welcome(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    struct connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void serve_tcp(int listener) {
    struct connection door = {.fd = listener};
    struct epoll_event ready[1024];
    watch(&door, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int count = epoll_wait(poller, ready, 1024, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c == &door) welcome(listener);
            else if (ready[i].events & EPOLLOUT) flush(c);
            else echo(c);
        }
    }
}

static void serve_udp(int fd) {
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    while (epoll_wait(poller, &event, 1, -1)) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(fd, inbox, sizeof inbox, 0, (struct sockaddr *)&from, &length);
        if (n >= 0) sendto(fd, inbox, n, 0, (struct sockaddr *)&from, length);
    }
}

static void serve_batches(int fd) {
    static char payloads[BATCH][65536], controls[BATCH][CMSG_SPACE(sizeof(struct in_pktinfo))];
    static struct sockaddr_in names[BATCH];
    static struct iovec iovecs[BATCH];
    static struct mmsghdr messages[BATCH];
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN};
    setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    for (int i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_name = &names[i], .msg_iov = &iovecs[i], .msg_iovlen = 1};
    while (epoll_wait(poller, &event, 1, -1)) {
        for (int i = 0; i < BATCH; i++) {
            iovecs[i] = (struct iovec){payloads[i], sizeof payloads[i]};
            messages[i].msg_hdr.msg_namelen = sizeof names[i];
            messages[i].msg_hdr.msg_control = controls[i];
            messages[i].msg_hdr.msg_controllen = sizeof controls[i];
        }
        int count = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        for (int i = 0; i < count; i++) {
            iovecs[i].iov_len = messages[i].msg_len;
            struct cmsghdr *c = CMSG_FIRSTHDR(&messages[i].msg_hdr);
            if (c) ((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex = 0;
        }
        for (int sent = 0, n; sent < count; sent += n)
            if ((n = sendmmsg(fd, messages + sent, count - sent, MSG_DONTWAIT)) < 1) n = 1;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) { fputs("usage: epoll_echo tcp|udp|batches HOST PORT\n", stderr); return 2; }
    int tcp = !strcmp(argv[1], "tcp"), one = 1;
    int fd = socket(AF_INET, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    inet_pton(AF_INET, argv[2], &at.sin_addr);
    if (tcp) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    poller = epoll_create1(0);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || (tcp && listen(fd, 4096))) { perror("epoll_echo"); return 1; }
    if (tcp) serve_tcp(fd);
    else if (!strcmp(argv[1], "udp")) serve_udp(fd);
    else serve_batches(fd);
}
