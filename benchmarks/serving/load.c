/* A load generator for HTTP/1.1 with keep-alive: one thread, epoll, one request in flight on each connection.
 *
 *   load PORT CONNECTIONS WARM SECONDS RATE REQUESTS [MARK]
 *
 * REQUESTS is a file of raw requests, each preceded by its length as a little-endian 32-bit number; they are sent in
 * turn. RATE 0 is a closed loop: the next request goes out when the answer has come. Otherwise so many requests a
 * second are due on a fixed schedule, whatever the server does, and the latency of each counts from when it was due
 * (so a slow server cannot slow the measurement down: "coordinated omission"). What is due during WARM seconds is not
 * counted. Prints one line of JSON; latencies in milliseconds. With MARK, such as '"version":"', the different texts
 * that stand between it and the next quote in the bodies of answers 200 are counted. SIGTERM ends it before its time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 4096 /* logarithmic: 64 for each doubling, from 1 microsecond */
#define ROOM 65536

typedef struct {
    uint64_t count[BUCKETS];
    uint64_t total;
    double longest;
} Histogram;

typedef struct {
    int fd, busy, which;
    size_t sent, have, room;
    double due;
    char *in;
} Connection;

static char **request;
static size_t *length;
static int requests, next_request, port;
static uint64_t broken, other;
static Histogram ok, refused;
static double warm_until;
static uint64_t answered;
static const char *mark;
static uint64_t text[4096]; /* hashes of those seen */
static int texts;
static volatile sig_atomic_t over;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void count(Histogram *h, double seconds) {
    double us = seconds * 1e6;
    int bucket = 0;
    if (us > 1) {
        int power = 0;
        double low = 1;
        while (low * 2 <= us) low *= 2, power++;
        bucket = power * 64 + (int)((us / low - 1) * 64);
    }
    h->count[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    h->total++;
    if (seconds > h->longest) h->longest = seconds;
}

static double quantile(const Histogram *h, double q) {
    uint64_t rank = (uint64_t)(q * h->total), seen = 0;
    for (int b = 0; b < BUCKETS; b++) {
        seen += h->count[b];
        if (seen > rank) {
            double low = 1;
            for (int p = 0; p < b / 64; p++) low *= 2;
            return low * (1 + (b % 64 + 0.5) / 64) * 1e-3;
        }
    }
    return h->longest * 1e3;
}

static void stop(const char *why) {
    fprintf(stderr, "%s: %s\n", why, strerror(errno));
    exit(1);
}

static void load_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    uint32_t size;
    if (!file) stop(path);
    while (fread(&size, 4, 1, file) == 1) {
        request = realloc(request, (requests + 1) * sizeof *request);
        length = realloc(length, (requests + 1) * sizeof *length);
        request[requests] = malloc(size);
        length[requests] = size;
        if (fread(request[requests], 1, size, file) != size) stop("the file of requests ends early");
        requests++;
    }
    fclose(file);
    if (!requests) stop("no requests");
}

static void connect_to(Connection *c, int epoll) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    int one = 1;
    if (!c->in) c->in = malloc(c->room = ROOM);
    c->busy = 0;
    c->have = 0;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) stop("socket");
    while (connect(c->fd, (void *)&address, sizeof address))
        if (errno != EINTR) stop("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

/* Write what the socket takes; the rest goes when it can take more. */
static void push(Connection *c, int epoll) {
    size_t size = length[c->which];
    while (c->sent < size) {
        ssize_t n = send(c->fd, request[c->which] + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) break; /* full, or gone: then reading tells */
        c->sent += n;
    }
    if (c->sent < size || size > ROOM) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (c->sent < size ? EPOLLOUT : 0), .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    }
}

static void start(Connection *c, double due, int epoll) {
    c->busy = 1;
    c->sent = c->have = 0;
    c->due = due;
    c->which = next_request;
    next_request = next_request + 1 == requests ? 0 : next_request + 1;
    push(c, epoll);
}

/* 1 when the answer is whole, 0 when more must come, -1 when the connection ended. */
static int receive(Connection *c) {
    for (;;) {
        if (c->have + 1 >= c->room) c->in = realloc(c->in, c->room *= 2);
        ssize_t n = recv(c->fd, c->in + c->have, c->room - c->have - 1, 0);
        if (n == 0) return -1;
        if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
        c->have += n;
        c->in[c->have] = 0;
        char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
        if (!end) continue;
        long body = -1;
        for (char *line = c->in; line && line < end; line = memchr(line, '\n', end - line), line = line ? line + 1 : 0)
            if (!strncasecmp(line, "content-length:", 15)) body = atol(line + 15);
        if (body < 0) {
            fprintf(stderr, "an answer has no content-length:\n%.*s\n", (int)(end - c->in), c->in);
            exit(1);
        }
        if (c->have >= (size_t)(end + 4 - c->in) + body) return 1;
    }
}

static void end_early(int number) { over = number; }

static void look(const Connection *c) {
    const char *body = memmem(c->in, c->have, "\r\n\r\n", 4), *found = strstr(body, mark);
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    if (!found) return;
    for (found += strlen(mark); *found && *found != '"'; found++) hash = (hash ^ (unsigned char)*found) * 1099511628211u;
    for (int i = texts - 1; i >= 0; i--)
        if (text[i] == hash) return;
    if (texts < 4096) text[texts++] = hash;
}

static void finish(Connection *c, double at) {
    c->busy = 0;
    answered++;
    if (at < warm_until) return;
    if (mark && !strncmp(c->in + 9, "200", 3)) look(c);
    if (!strncmp(c->in + 9, "200", 3)) count(&ok, at - c->due);
    else if (!strncmp(c->in + 9, "429", 3) || !strncmp(c->in + 9, "503", 3)) count(&refused, at - c->due);
    else if (!other++) fprintf(stderr, "%.*s\n", (int)(c->have < 600 ? c->have : 600), c->in);
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8) return fprintf(stderr, "load PORT CONNECTIONS WARM SECONDS RATE REQUESTS [MARK]\n"), 2;
    mark = argc == 8 ? argv[7] : NULL;
    port = atoi(argv[1]);
    int connections = atoi(argv[2]), idle = 0;
    double warm = atof(argv[3]), seconds = atof(argv[4]), rate = atof(argv[5]);
    load_requests(argv[6]);
    signal(SIGTERM, end_early);
    int epoll = epoll_create1(0);
    Connection *all = calloc(connections, sizeof *all), **free_ones = calloc(connections, sizeof *free_ones);
    for (int i = 0; i < connections; i++) connect_to(&all[i], epoll);
    double began = now(), end = began + warm + seconds, at = began;
    warm_until = began + warm;
    for (int i = 0; i < connections; i++)
        if (rate > 0) free_ones[idle++] = &all[i];
        else start(&all[i], at, epoll);
    uint64_t made = 0;
    struct epoll_event events[1024];
    while (at < end && !over) {
        int found = epoll_wait(epoll, events, 1024, rate > 0 ? (idle ? 0 : 1) : 100);
        at = now();
        for (int i = 0; i < found; i++) {
            Connection *c = events[i].data.ptr;
            if (c->busy && (events[i].events & EPOLLOUT)) push(c, epoll);
            if (!(events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))) continue;
            int was_busy = c->busy, got = c->busy ? receive(c) : -1;
            if (got == 0) continue;
            if (got == 1) {
                at = now();
                finish(c, at);
            } else {
                if (was_busy && at >= warm_until) broken++;
                close(c->fd);
                connect_to(c, epoll);
            }
            if (rate <= 0) start(c, at, epoll);
            else if (was_busy) free_ones[idle++] = c;
        }
        while (rate > 0 && idle && began + made / rate <= at) start(free_ones[--idle], began + made++ / rate, epoll);
    }
    double spent = at - warm_until;
    uint64_t due = rate > 0 ? (uint64_t)((at - began) * rate) - made : 0;
    printf("{\"seconds\": %.3f, \"ok\": %lu, \"refused\": %lu, \"other\": %lu, \"broken\": %lu, \"unsent\": %lu, "
           "\"answered\": %lu, \"texts\": %d, "
           "\"p50\": %.4f, \"p99\": %.4f, \"longest\": %.4f, \"refused_p50\": %.4f, \"refused_p99\": %.4f}\n",
           spent, ok.total, refused.total, other, broken, due, answered, texts, quantile(&ok, 0.5), quantile(&ok, 0.99),
           ok.longest * 1e3, quantile(&refused, 0.5), quantile(&refused, 0.99));
    return 0;
}
