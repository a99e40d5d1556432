/* SPDX-License-Identifier: MIT */
/*
 * The client's side of NBD measurements, on one connection to a unix socket.
 *
 *   load     requests of one kind and size, a number of them in flight, for a while; or so many,
 *            each place at most once, and a flush; of every n-th block only
 *   extents  all extents of a metadata context, from the first byte to the last
 *   mark     a 512-byte write into every n-th block, or at random into one of n
 *   zero     zeroes from the first byte to the last, a block each
 *
 * Prints one line: requests (or extents), seconds, and the median and 99th percentile of a
 * request's latency in microseconds.
 */
#include "wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DEPTH       1024
#define MAX_LATENCIES   (1 << 20)
#define STATUS_STEP     UINT64_C(0xffff0000) /* what a 32-bit length can ask for */
#define MARK_BYTES      512
#define MARKS_IN_FLIGHT 64

static struct {
    char *pattern, *context;
    int64_t block;
    int depth, every;
    double seconds;
    int64_t requests, first, announce;
    gboolean extended, no_flush;
} options = { .block = 4096, .depth = 1, .every = 1, .seconds = 1 };

static const GOptionEntry entries[] = {
    { "pattern", 0, 0, G_OPTION_ARG_STRING, &options.pattern,
      "load: read, write, randread or randwrite; mark: random", "NAME" },
    { "block", 0, 0, G_OPTION_ARG_INT64, &options.block, "Size of a request or block", "BYTES" },
    { "depth", 0, 0, G_OPTION_ARG_INT, &options.depth, "Requests in flight", "N" },
    { "every", 0, 0, G_OPTION_ARG_INT, &options.every, "load, mark: one block in N", "N" },
    { "seconds", 0, 0, G_OPTION_ARG_DOUBLE, &options.seconds, "load: for so long", "S" },
    { "requests", 0, 0, G_OPTION_ARG_INT64, &options.requests, "load: so many, and a flush", "N" },
    { "first", 0, 0, G_OPTION_ARG_INT64, &options.first,
      "load: number of the first of so many, which go elsewhere than others'", "N" },
    { "announce", 0, 0, G_OPTION_ARG_INT64, &options.announce,
      "load: print a line when so many are done", "N" },
    { "no-flush", 0, 0, G_OPTION_ARG_NONE, &options.no_flush, "load: without the flush", NULL },
    { "context", 0, 0, G_OPTION_ARG_STRING, &options.context, "Metadata context", "NAME" },
    { "extended", 0, 0, G_OPTION_ARG_NONE, &options.extended, "Ask for extended headers", NULL },
    { NULL },
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t rnd(void)
{
    static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* --- results --- */

static float latencies[MAX_LATENCIES];
static uint64_t n_latencies;

static void note_latency(double seconds)
{
    if (n_latencies < MAX_LATENCIES) {
        latencies[n_latencies++] = (float)(seconds * 1e6);
    }
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

static void print_result(uint64_t n, double seconds)
{
    qsort(latencies, n_latencies, sizeof(*latencies), compare);
    printf("%" PRIu64 " %.9f %.1f %.1f\n", n, seconds,
           n_latencies ? (double)latencies[n_latencies / 2] : 0,
           n_latencies ? (double)latencies[n_latencies - 1 - n_latencies / 100] : 0);
}

/* --- load --- */

typedef struct Load {
    Wire *wire;
    bool writes, is_random;
    uint64_t next_block, blocks;
    uint64_t to_queue; /* so many more */
    double sent_at[MAX_DEPTH];
    uint8_t *out; /* requests that leave together, and their payloads */
    size_t out_bytes;
} Load;

/* A different block for each number below their count, and in no order: the count has few divisors
 * in common with a prime. */
static uint64_t shuffled(uint64_t number, uint64_t blocks)
{
    return number * UINT64_C(2654435761) % blocks;
}

static void queue_request(Load *load, unsigned slot)
{
    uint64_t block = load->next_block++ % load->blocks;

    if (load->is_random) {
        block = options.requests ? shuffled(block, load->blocks) : rnd() % load->blocks;
    }
    load->to_queue--;

    load->out_bytes += wire_request(
        load->wire, load->out + load->out_bytes, load->writes ? NBD_CMD_WRITE : NBD_CMD_READ, slot,
        block * (uint64_t)options.every * (uint64_t)options.block, (uint64_t)options.block);
    if (load->writes) {
        load->out_bytes += (size_t)options.block; /* what lies there is as good as anything */
    }
}

static void flush_requests(Load *load)
{
    wire_send(load->wire, load->out, load->out_bytes);
    load->out_bytes = 0;
}

/* Take the replies that are there, at least one; returns how many requests are done. */
static unsigned take_replies(Load *load, bool go_on)
{
    unsigned done = 0;
    double time = 0;

    do {
        WireReply reply = wire_reply(load->wire);

        wire_skip(load->wire, reply.length);
        if (!reply.done) {
            continue;
        }
        if (time == 0) {
            time = now();
        }
        note_latency(time - load->sent_at[reply.cookie]);
        done++;
        if (go_on && load->to_queue) {
            load->sent_at[reply.cookie] = time;
            queue_request(load, (unsigned)reply.cookie);
        }
    } while (done == 0 || wire_has_more(load->wire));
    return done;
}

static void fill_payloads(uint8_t *out, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t value = rnd();

        memcpy(out + i, &value, sizeof(value));
    }
}

static void flush(Wire *wire)
{
    uint8_t request[NBD_EXTENDED_REQUEST_BYTES];

    wire_send(wire, request, wire_request(wire, request, NBD_CMD_FLUSH, 0, 0, 0));
    wire_reply(wire);
}

static void run_load(Wire *wire)
{
    size_t room = (size_t)options.depth * ((size_t)options.block + NBD_EXTENDED_REQUEST_BYTES);
    const char *pattern = options.pattern ? options.pattern : "randread";
    Load load = { .wire = wire,
                  .writes = strstr(pattern, "write"),
                  .is_random = g_str_has_prefix(pattern, "rand"),
                  .next_block = (uint64_t)options.first,
                  .blocks = wire->size / (uint64_t)options.block / (uint64_t)options.every,
                  .to_queue = options.requests ? (uint64_t)options.requests : UINT64_MAX,
                  .out = g_malloc(room + sizeof(uint64_t)) };
    uint64_t done = 0;
    double start;

    fill_payloads(load.out, room);
    start = now();
    for (int i = 0; i < options.depth && load.to_queue; i++) {
        load.sent_at[i] = start;
        queue_request(&load, (unsigned)i);
    }
    flush_requests(&load);
    while (options.requests ? done < (uint64_t)options.requests : now() - start < options.seconds) {
        uint64_t before = done, announced = (uint64_t)options.announce;

        done += take_replies(&load, true);
        flush_requests(&load);
        if (before < announced && done >= announced) {
            puts("at work");
            fflush(stdout);
        }
    }
    if (options.requests && !options.no_flush) {
        flush(wire);
    }
    print_result(done, now() - start);
    for (unsigned left = options.requests ? 0 : (unsigned)options.depth; left;) {
        left -= take_replies(&load, false);
    }
    g_free(load.out);
}

/* --- extents --- */

static uint64_t take_extents(Wire *wire, uint64_t bytes, uint64_t *n)
{
    size_t size = wire->extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES;
    uint64_t covered = 0;

    wire_take(wire, wire->extended ? NBD_BLOCK_STATUS_EXT_BYTES : NBD_BLOCK_STATUS_BYTES);
    bytes -= wire->extended ? NBD_BLOCK_STATUS_EXT_BYTES : NBD_BLOCK_STATUS_BYTES;
    *n += bytes / size;
    while (bytes) {
        size_t part = MIN(bytes, WIRE_BUFFER / 2);
        const uint8_t *next = wire_take(wire, part);

        for (const uint8_t *end = next + part; next < end; next += size) {
            covered += wire->extended ? nbd_get64(next) : nbd_get32(next);
        }
        bytes -= part;
    }
    return covered;
}

static void run_extents(Wire *wire)
{
    uint8_t request[NBD_EXTENDED_REQUEST_BYTES];
    double start = now(), end;
    uint64_t offset = 0, n = 0;

    while (offset < wire->size) {
        uint64_t left = wire->size - offset;
        WireReply reply;

        wire_send(wire, request,
                  wire_request(wire, request, NBD_CMD_BLOCK_STATUS, 0, offset,
                               wire->extended ? left : MIN(left, STATUS_STEP)));
        reply = wire_reply(wire);
        offset += take_extents(wire, reply.length, &n);
    }
    end = now();
    print_result(n, end - start);
}

/* --- mark --- */

static void run_mark(Wire *wire)
{
    uint64_t blocks = wire->size / (uint64_t)options.block;
    bool is_random = options.pattern && !strcmp(options.pattern, "random");
    uint64_t in_flight = 0;
    double start = now();

    for (uint64_t block = 0; block < blocks; block += (uint64_t)options.every) {
        uint8_t request[NBD_EXTENDED_REQUEST_BYTES + MARK_BYTES] = { 0 };
        uint64_t at = is_random ? rnd() % blocks : block;
        size_t bytes =
            wire_request(wire, request, NBD_CMD_WRITE, 0, at * (uint64_t)options.block, MARK_BYTES);

        wire_send(wire, request, bytes + MARK_BYTES);
        for (in_flight++; in_flight >= MARKS_IN_FLIGHT; in_flight--) {
            wire_reply(wire);
        }
    }
    for (; in_flight; in_flight--) {
        wire_reply(wire);
    }
    print_result((blocks + (uint64_t)options.every - 1) / (uint64_t)options.every, now() - start);
}

static void run_zero(Wire *wire)
{
    uint64_t n = 0;
    double start = now();

    for (uint64_t offset = 0; offset < wire->size; offset += (uint64_t)options.block, n++) {
        uint8_t request[NBD_EXTENDED_REQUEST_BYTES];
        uint64_t bytes = MIN((uint64_t)options.block, wire->size - offset);

        wire_send(wire, request,
                  wire_request(wire, request, NBD_CMD_WRITE_ZEROES, 0, offset, bytes));
        wire_reply(wire);
    }
    print_result(n, now() - start);
}

static const struct {
    const char *name;
    void (*run)(Wire *wire);
} modes[] = {
    { "load", run_load }, { "extents", run_extents }, { "mark", run_mark }, { "zero", run_zero }
};

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) parser = g_option_context_new("SOCKET EXPORT load|extents|mark|zero");
    g_autoptr(GError) error = NULL;
    Wire wire;

    g_option_context_add_main_entries(parser, entries, NULL);
    if (!g_option_context_parse(parser, &argc, &argv, &error)) {
        wire_fail("%s", error->message);
    }
    if (argc != 4 || options.block <= 0 || options.every <= 0 || options.depth <= 0 ||
        options.depth > MAX_DEPTH) {
        wire_fail("usage: bench-nbd SOCKET EXPORT load|extents|mark|zero [OPTION...]; see --help");
    }
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (!strcmp(argv[3], modes[i].name)) {
            wire_open(&wire, argv[1], argv[2], options.context, options.extended);
            modes[i].run(&wire);
            wire_close(&wire);
            return 0;
        }
    }
    wire_fail("no mode '%s'", argv[3]);
}
