/* TCP ping-pong load: C connections, each with one message of S bytes under way, for T seconds.
 *
 *     load HOST PORT CONNECTIONS MESSAGE_BYTES SECONDS
 *
 * Prints "messages seconds". Every byte that comes back is compared with what was sent; a difference, a lost
 * connection or ten silent seconds ends it with status 1 and a line on stderr. One thread, epoll(7), no allocation after
 * the start: it has to be faster than any server that it measures.
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
#include <time.h>
#include <unistd.h>

#define MOST_BYTES (1 << 20)

static unsigned char pattern[MOST_BYTES + 256], inbox[MOST_BYTES];

struct peer { int fd; size_t received; unsigned char phase; };

static void fail(const char *what) { fprintf(stderr, "load: %s: %s\n", what, strerror(errno)); exit(1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Messages are windows on one long pattern, shifted by one for each message, so that a stale answer differs. */
static void send_next(struct peer *peer, size_t size) {
    peer->phase++;
    peer->received = 0;
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(peer->fd, pattern + peer->phase + sent, size - sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) fail("send");
        if (n > 0) sent += n;
    }
}

int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "usage: load HOST PORT CONNECTIONS MESSAGE_BYTES SECONDS\n"); return 2; }
    int connections = atoi(argv[3]);
    size_t size = atol(argv[4]);
    double seconds = atof(argv[5]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (connections < 1 || size < 1 || size > MOST_BYTES || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) {
        fprintf(stderr, "load: arguments out of range\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = (unsigned char)(i * 31 + (i >> 8));
    struct peer *peers = calloc(connections, sizeof *peers);
    int poller = epoll_create1(0), one = 1;
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        peers[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (peers[i].fd < 0 || connect(peers[i].fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
        setsockopt(peers[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, peers[i].fd, &event)) fail("epoll_ctl");
        peers[i].phase = i;
    }
    for (int i = 0; i < connections; i++) send_next(&peers[i], size);
    unsigned long messages = 0;
    double start = now(), end = start + seconds, time = start;
    struct epoll_event ready[1024];
    while (time < end) {
        int count = epoll_wait(poller, ready, 1024, 10000);
        if (count == 0) { errno = ETIMEDOUT; fail("waiting for an answer"); }
        for (int i = 0; i < count; i++) {
            struct peer *peer = &peers[ready[i].data.u32];
            ssize_t n = recv(peer->fd, inbox, size - peer->received, MSG_DONTWAIT);
            if (n == 0) { errno = ECONNRESET; fail("the server closed"); }
            if (n < 0) { if (errno == EAGAIN || errno == EINTR) continue; fail("recv"); }
            if (memcmp(inbox, pattern + peer->phase + peer->received, n)) { errno = EPROTO; fail("a byte was changed"); }
            peer->received += n;
            if (peer->received == size) { messages++; send_next(peer, size); }
        }
        time = now();
    }
    printf("%lu %.6f\n", messages, time - start);
    return 0;
}
