/* The load: clients that send, compare every byte that comes back, and count messages.
 *
 *     load MODE HOST PORT COUNT BYTES SECONDS [SILENT_SECONDS]
 *
 *     pingpong   COUNT connections, each with one outstanding message of BYTES (one connection: also its round trips)
 *     polling    the same, but the load polls for answers and never sleeps
 *     bulk       COUNT connections, each sends all that the kernel takes, in writes of BYTES, and reads at the same time;
 *                one receive in SAMPLED is compared: a load that looks at every byte would be slower than the servers,
 *                and the figures would be its own
 *     churn      COUNT clients at once, each: connect, echo BYTES, send FIN, wait for the server's FIN; then the next
 *     idle       COUNT connections, BYTES once on each; later once more
 *     udp        COUNT sockets, each with one outstanding datagram of BYTES; a lost one is sent again and counted
 *     fair       COUNT connections as in `bulk`, and one more that sends 64 bytes twenty times a second
 *
 * It prints "ready" when it is connected, and starts when it reads a line. It prints "time" when the time is up, and one
 * JSON object when every answer is in. It ends when its standard input ends. So the process that started it can read the
 * server's use of CPU and memory at each of these moments.
 * A wrong, missing or surplus byte, a lost connection or ten silent seconds: one line on stderr, status 1.
 *
 * One thread, epoll(7), no allocation after the start: the load must be faster than the servers.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_BYTES (1 << 20)
#define PERIOD 65521          /* a prime, so that the pattern never repeats at a power of two */
#define ENDLESS UINT64_MAX
#define SOURCES 250           /* from 127.0.0.2 on: one address has too few ports for thousands of connections a second */
#define MOST_SAMPLES (1 << 20)
#define WAIT_MS 20            /* to notice the end of the time if the server stalls */
#define RESEND_S 0.2
#define PING_BYTES 64
#define PING_PAUSE_S 0.05
#define SAMPLED 17            /* a prime, so that all connections in turn are compared; after the time, every receive */
#define BATCH 128             /* connections opened at once; less than any server's backlog */

enum stage { CONNECTING, ECHOING, ENDING };

/* A stream of the pattern: the bytes sent, the bytes received, and how many to send for now. */
struct peer {
    uint64_t sent, received, goal;
    double asked_s;           /* when the outstanding message was sent */
    int fd;
    uint32_t interest;
    enum stage stage;
    int resent, late;         /* udp: copies sent of this datagram; answers still due to copies of the previous one */
};

static unsigned char pattern[PERIOD + MOST_BYTES], inbox[MOST_BYTES];
static float samples_us[MOST_SAMPLES];
static size_t sample_count;
static struct sockaddr_in server;
static struct peer *peers;
static struct epoll_event ready[1024];
static int poller, count, polls;
static size_t size;
static double seconds, silent_s = 10;
static uint64_t messages, bytes, lost;
static uint64_t timely_messages, timely_bytes; /* the part that came before the time was up */
static double took_s;

static void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    exit(1);
}

static double clock_s(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double now(void) { return clock_s(CLOCK_MONOTONIC); }

static const unsigned char *window(uint64_t offset) { return pattern + offset % PERIOD; }

static void fill_pattern(void) {
    uint32_t x = 862;
    for (size_t i = 0; i < PERIOD; i++) {
        x = x * 1664525 + 1013904223;
        pattern[i] = x >> 24;
    }
    for (size_t i = PERIOD; i < sizeof pattern; i++) pattern[i] = pattern[i - PERIOD];
}

static void sample(double s) { if (sample_count < MOST_SAMPLES) samples_us[sample_count++] = s * 1e6; }

static void compare(const struct peer *peer, uint64_t offset, size_t n) {
    const unsigned char *expected = window(offset);
    if (memcmp(inbox, expected, n) == 0) return;
    size_t i = 0;
    while (inbox[i] == expected[i]) i++;
    fail("a byte was changed: %d came back for %d on connection %d", inbox[i], expected[i], (int)(peer - peers));
}

/* ---- interest */

static void want(struct peer *peer, uint32_t interest) {
    if (peer->interest == interest) return;
    struct epoll_event event = {.events = interest, .data.u32 = peer - peers};
    int operation = peer->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(poller, operation, peer->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
    peer->interest = interest;
}

/* ---- TCP */

/* Start to connect, from the next of many addresses. */
static void call(struct peer *peer, int flags) {
    static unsigned turn;
    int one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + turn++ % SOURCES)};
    peer->fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (peer->fd < 0) fail("socket: %s; raise 'ulimit -n'", strerror(errno));
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(peer->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(peer->fd, (struct sockaddr *)&from, sizeof from)) fail("bind: %s", strerror(errno));
    if (connect(peer->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    peer->interest = 0;
    peer->stage = CONNECTING;
}

/* Send what is due and fits. An endless stream gets one write for each event, so that reading keeps up. */
static void push(struct peer *peer) {
    while (peer->sent < peer->goal) {
        uint64_t due = peer->goal - peer->sent;
        ssize_t n = send(peer->fd, window(peer->sent), due < size ? due : size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) fail("send: %s", strerror(errno));
        peer->sent += n;
        if (peer->goal == ENDLESS) break;
    }
    want(peer, EPOLLIN | (peer->sent < peer->goal ? EPOLLOUT : 0));
}

/* Return the kernel's time of arrival, so that our own delays don't count. */
static double arrival_s(struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            return t.tv_sec + t.tv_nsec * 1e-9;
        }
    }
    return clock_s(CLOCK_REALTIME);
}

/* Receive once and compare. Return 0 at the end of the stream, which is right only after all bytes. */
static ssize_t pull(struct peer *peer, double *at_s) {
    char control[128];
    struct iovec into = {inbox, sizeof inbox};
    struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    static unsigned receives;
    ssize_t n = at_s ? recvmsg(peer->fd, &message, MSG_DONTWAIT) : recv(peer->fd, inbox, sizeof inbox, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return -1;
    if (n < 0) fail("receive: %s", strerror(errno));
    if (n == 0 && peer->stage != ENDING) fail("the server closed connection %d", (int)(peer - peers));
    if ((uint64_t)n > peer->sent - peer->received) fail("more came back than was sent on connection %d", (int)(peer - peers));
    if (peer->goal != ENDLESS || ++receives % SAMPLED == 0) compare(peer, peer->received, n);
    if (at_s) *at_s = arrival_s(&message);
    peer->received += n;
    bytes += n;
    return n;
}

/* Wait for all of one message. */
static void pull_whole(struct peer *peer) {
    double end = now() + silent_s;
    struct timespec pause = {0, 20000};
    while (peer->received < peer->goal) {
        if (now() > end) fail("no answer for %g s", silent_s);
        if (pull(peer, NULL) < 0) nanosleep(&pause, NULL);
    }
}

static void open_all(int total) {
    for (int i = 0; i < total; i++) {
        peers[i].sent = peers[i].received = peers[i].goal = (uint64_t)i * 9973;
        call(&peers[i], 0);
        peers[i].stage = ECHOING;
        if (i % BATCH != BATCH - 1 && i != total - 1) continue;
        for (int k = i - i % BATCH; k <= i; k++) { peers[k].goal += PING_BYTES; push(&peers[k]); }
        for (int k = i - i % BATCH; k <= i; k++) pull_whole(&peers[k]);
    }
    bytes = 0;
}

static void wait_for_go(void) {
    puts("ready");
    fflush(stdout);
    if (getchar() == EOF) exit(0);
}

/* The time is up: later answers are compared and counted, but don't belong to the rate. */
static void note_time_is_up(double time_s) {
    static int noted;
    if (noted++) return;
    puts("time");
    fflush(stdout);
    took_s = time_s;
    timely_messages = messages;
    timely_bytes = bytes;
}

static void check_silence(double time, double last) {
    if (time - last > silent_s) fail("no answer for %g s", silent_s);
}

/* End the endless streams; return how many answers are due. */
static int stop_sending(int total) {
    int live = 0;
    for (int i = 0; i < total; i++) {
        if (peers[i].goal == ENDLESS) peers[i].goal = peers[i].sent;
        push(&peers[i]);
        live += peers[i].received < peers[i].goal;
    }
    return live;
}

/* pingpong, bulk and fair: stream until the time is up, then until every byte is back. `ping` may be NULL. */
static void stream(int total, struct peer *ping, int bulk) {
    double start = now(), stop = start + seconds, last = start, next_ping = start, time, at_s = 0;
    int live = -1, patience_ms = polls ? 0 : ping ? 1 : WAIT_MS;
    for (int i = 0; i < total; i++) {
        if (&peers[i] == ping) continue;
        peers[i].goal = bulk ? ENDLESS : peers[i].goal + size;
        peers[i].asked_s = start;
        push(&peers[i]);
    }
    while (time = now(), live != 0) {
        check_silence(time, last);
        if (live < 0 && time >= stop) {
            note_time_is_up(time - start);
            live = stop_sending(total);
            continue;
        }
        if (live < 0 && ping && time >= next_ping && ping->received == ping->goal) {
            next_ping = time + PING_PAUSE_S;
            ping->goal += PING_BYTES;
            ping->asked_s = clock_s(CLOCK_REALTIME);
            push(ping);
        }
        int found = epoll_wait(poller, ready, 1024, patience_ms);
        for (int i = 0; i < found; i++) {
            struct peer *peer = &peers[ready[i].data.u32];
            if (ready[i].events & EPOLLOUT) push(peer);
            if (!(ready[i].events & ~EPOLLOUT) || pull(peer, peer == ping ? &at_s : NULL) < 0) continue;
            last = time;
            if (peer->received < peer->goal) continue;
            messages++;
            if (peer == ping) sample(at_s - peer->asked_s);
            else if (total == 1) sample(now() - peer->asked_s);
            if (live > 0) live--;
            else if (peer != ping) {
                peer->goal += size;
                if (total == 1) peer->asked_s = now();
                push(peer);
            }
        }
    }
}

/* One step of a client: connect, echo, FIN, and the next connection if `again`. */
static void churn_step(struct peer *peer, int again) {
    int error = 0;
    socklen_t length = sizeof error;
    if (peer->stage == CONNECTING) {
        getsockopt(peer->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) fail("connect: %s", strerror(error));
        peer->stage = ECHOING;
        peer->goal += size;
        push(peer);
        return;
    }
    ssize_t n = pull(peer, NULL);
    if (n < 0) return;
    if (n > 0) {
        if (peer->received < peer->goal) return;
        peer->stage = ENDING;
        shutdown(peer->fd, SHUT_WR);
        return;
    }
    close(peer->fd);
    messages++;
    if (!again) { peer->fd = -1; return; }
    call(peer, SOCK_NONBLOCK);
    want(peer, EPOLLOUT);
}

static void churn(void) {
    double start = now(), stop = start + seconds, last = start, time;
    int live = count;
    for (int i = 0; i < count; i++) {
        peers[i].sent = peers[i].received = peers[i].goal = (uint64_t)i * 9973;
        call(&peers[i], SOCK_NONBLOCK);
        want(&peers[i], EPOLLOUT);
    }
    while (time = now(), live > 0) {
        check_silence(time, last);
        if (time >= stop) note_time_is_up(time - start);
        int found = epoll_wait(poller, ready, 1024, WAIT_MS);
        if (found > 0) last = time;
        for (int i = 0; i < found; i++) {
            struct peer *peer = &peers[ready[i].data.u32];
            churn_step(peer, time < stop);
            live -= peer->fd < 0;
        }
    }
}

/* ---- UDP */

static void open_datagram_sockets(void) {
    for (int i = 0; i < count; i++) {
        peers[i].received = (uint64_t)i * 9973;
        peers[i].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (peers[i].fd < 0 || connect(peers[i].fd, (struct sockaddr *)&server, sizeof server))
            fail("udp socket: %s", strerror(errno));
        want(&peers[i], EPOLLIN);
    }
}

static void ask(struct peer *peer, double time) {
    peer->asked_s = time;
    while (send(peer->fd, window(peer->received), size, MSG_NOSIGNAL) < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != ENOBUFS) fail("send: %s", strerror(errno));
        break;
    }
}

/* Return whether the due answer has come. An answer to a copy of the previous datagram is late, not wrong. */
static int answered(struct peer *peer) {
    ssize_t n = recv(peer->fd, inbox, sizeof inbox, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n < 0) fail("receive: %s", strerror(errno));
    if ((size_t)n != size) fail("a datagram of %zu bytes came back with %zd", size, n);
    if (peer->late && memcmp(inbox, window(peer->received - size), n) == 0) { peer->late--; return 0; }
    compare(peer, peer->received, n);
    peer->received += size;
    bytes += size;
    peer->late = peer->resent;
    peer->resent = 0;
    return 1;
}

static void send_again(double time) {
    for (int i = 0; i < count; i++) {
        if (peers[i].stage == ENDING || time - peers[i].asked_s < RESEND_S) continue;
        lost++;
        peers[i].resent++;
        ask(&peers[i], time);
    }
}

static void datagrams(void) {
    double start = now(), stop = start + seconds, last = start, looked = start, time;
    int live = count;
    for (int i = 0; i < count; i++) ask(&peers[i], start);
    while (time = now(), live > 0) {
        check_silence(time, last);
        if (time >= stop) note_time_is_up(time - start);
        if (time - looked > RESEND_S / 10) { send_again(time); looked = time; }
        int found = epoll_wait(poller, ready, 1024, WAIT_MS);
        for (int i = 0; i < found; i++) {
            struct peer *peer = &peers[ready[i].data.u32];
            if (!answered(peer)) continue;
            last = time;
            messages++;
            if (time < stop) ask(peer, time);
            else if (peer->stage != ENDING) { peer->stage = ENDING; live--; }
        }
    }
}

/* ---- the report */

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void report(void) {
    note_time_is_up(0); /* for `idle`, which has no time */
    printf("{\"messages\": %llu, \"bytes\": %llu, \"lost\": %llu", (unsigned long long)messages,
           (unsigned long long)bytes, (unsigned long long)lost);
    printf(", \"seconds\": %.6f, \"timely_messages\": %llu, \"timely_bytes\": %llu", took_s,
           (unsigned long long)timely_messages, (unsigned long long)timely_bytes);
    if (sample_count) {
        qsort(samples_us, sample_count, sizeof *samples_us, ascending);
        printf(", \"samples\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f", sample_count,
               samples_us[(sample_count - 1) / 2], samples_us[sample_count * 99 / 100], samples_us[sample_count - 1]);
    }
    puts("}");
    fflush(stdout);
    while (getchar() != EOF) {}
}

static void idle_again(void) {
    for (int i = 0; i < count; i++) {
        peers[i].goal += size;
        push(&peers[i]);
        pull_whole(&peers[i]);
        messages++;
    }
}

static int known(const char *mode) {
    const char *modes[] = {"pingpong", "polling", "bulk", "churn", "idle", "udp", "fair"};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) if (!strcmp(mode, modes[i])) return 1;
    return 0;
}

static void read_arguments(int argc, char **argv) {
    if (argc < 7 || argc > 8 || !known(argv[1])) {
        fputs("usage: load pingpong|polling|bulk|churn|idle|udp|fair HOST PORT COUNT BYTES SECONDS [SILENT_SECONDS]\n", stderr);
        exit(2);
    }
    count = atoi(argv[4]);
    size = atol(argv[5]);
    seconds = atof(argv[6]);
    if (argc == 8) silent_s = atof(argv[7]);
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    if (count < 1 || size < 1 || size > MOST_BYTES || seconds < 0 || inet_pton(AF_INET, argv[2], &server.sin_addr) != 1) {
        fputs("load: arguments out of range\n", stderr);
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_arguments(argc, argv);
    const char *mode = argv[1];
    polls = !strcmp(mode, "polling");
    int is_fair = !strcmp(mode, "fair"), is_bulk = is_fair || !strcmp(mode, "bulk"), one = 1;
    int total = count + is_fair;
    fill_pattern();
    peers = calloc(total, sizeof *peers);
    poller = epoll_create1(0);
    if (!strcmp(mode, "udp")) open_datagram_sockets();
    else if (strcmp(mode, "churn")) open_all(total);
    struct peer *ping = is_fair ? &peers[count] : NULL;
    if (ping) setsockopt(ping->fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
    wait_for_go();
    if (!strcmp(mode, "udp")) datagrams();
    else if (!strcmp(mode, "churn")) churn();
    else if (!strcmp(mode, "idle")) idle_again();
    else stream(total, ping, is_bulk);
    report();
    return 0;
}
