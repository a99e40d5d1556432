/* SPDX-License-Identifier: MIT */
/*
 * merino-img compare: whether two images show the same disk.
 *
 * Exit status: 0 the same, 1 different, 2 an image could not be opened, 3 its map or 4 its data
 * could not be read.
 */
#include "img.h"
#include "tool.h"
#include "util/coroutine.h"
#include "util/size.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STATUS_SAME = 0,
    STATUS_DIFFERENT = 1,
    STATUS_NOT_OPENED = 2,
    STATUS_NO_MAP = 3,
    STATUS_NOT_READ = 4,
};

#define CHUNK    (2 * MiB)
#define STEP_MAX GiB
#define SECTOR   512

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force-share", no_argument, NULL, 'U' },
    { NULL, 0, NULL, 0 },
};

typedef struct Side {
    ImageSource source;
    BlockBackend *image;
    int64_t size;
    void *buffer;
} Side;

typedef struct Comparison {
    Side sides[2];
    bool strict, progress, quiet;
    int64_t total;
} Comparison;

/* --- requests --- */

typedef struct Request {
    BlockBackend *image;
    int64_t offset, bytes;
    void *buffer; /* NULL: only the status */
    BlockStatus status;
    int ret;
} Request;

static void coroutine_fn request_entry(void *opaque)
{
    Request *r = opaque;
    IoVector vec;

    if (!r->buffer) {
        r->ret = backend_co_block_status_above(r->image, r->offset, r->bytes, &r->status);
        return;
    }
    iov_init_buf(&vec, r->buffer, r->bytes);
    r->ret = backend_co_preadv(r->image, r->offset, r->bytes, &vec, 0);
    iov_done(&vec);
}

static int run_request(Request *r)
{
    coroutine_run(request_entry, r);
    return r->ret;
}

/* --- comparing --- */

static void say(const Comparison *cmp, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void say(const Comparison *cmp, const char *format, ...)
{
    va_list args;

    if (cmp->quiet) {
        return;
    }
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
}

static bool read_side(Side *side, int64_t offset, int64_t bytes)
{
    Request r = { .image = side->image, .offset = offset, .bytes = bytes, .buffer = side->buffer };

    if (run_request(&r) < 0) {
        tool_error("Error while reading offset %" PRId64 " of %s: %s", offset, side->source.name,
                   g_strerror(-r.ret));
        return false;
    }
    return true;
}

/* The first sector in which the two differ, or `bytes`. */
static int64_t first_difference(const uint8_t *a, const uint8_t *b, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += SECTOR) {
        if (memcmp(a + at, b + at, MIN(SECTOR, bytes - at)) != 0) {
            return at;
        }
    }
    return bytes;
}

/* `b` NULL: with zeroes. */
static int compare_data(const Comparison *cmp, Side *a, Side *b, int64_t offset, int64_t bytes)
{
    static const uint8_t zeroes[CHUNK];

    while (bytes > 0) {
        int64_t chunk = MIN(bytes, CHUNK);
        int64_t same;

        if (!read_side(a, offset, chunk) || (b && !read_side(b, offset, chunk))) {
            return STATUS_NOT_READ;
        }
        same = first_difference(a->buffer, b ? b->buffer : zeroes, chunk);
        if (same < chunk) {
            say(cmp, "Content mismatch at offset %" PRId64 "!\n", offset + same);
            return STATUS_DIFFERENT;
        }
        offset += chunk;
        bytes -= chunk;
    }
    return STATUS_SAME;
}

static bool get_status(Side *side, int64_t offset, int64_t bytes, BlockStatus *ret)
{
    Request r = { .image = side->image, .offset = offset, .bytes = bytes };

    if (run_request(&r) < 0) {
        tool_error("Sector allocation test failed for %s", side->source.name);
        return false;
    }
    *ret = r.status;
    return true;
}

static bool reads_zero(const BlockStatus *status)
{
    return status->flags & BLOCK_STATUS_ZERO || !(status->flags & BLOCK_STATUS_ALLOCATED);
}

static int compare_range(Comparison *cmp, int64_t offset, int64_t bytes, int64_t *ret_done)
{
    Side *a = &cmp->sides[0], *b = &cmp->sides[1];
    BlockStatus of_a, of_b;

    if (!get_status(a, offset, bytes, &of_a) || !get_status(b, offset, bytes, &of_b)) {
        return STATUS_NO_MAP;
    }
    *ret_done = MIN(of_a.bytes, of_b.bytes);
    if (cmp->strict && of_a.flags != of_b.flags) {
        say(cmp, "Strict mode: Offset %" PRId64 " block status mismatch!\n", offset);
        return STATUS_DIFFERENT;
    }
    if (reads_zero(&of_a) && reads_zero(&of_b)) {
        return STATUS_SAME;
    }
    *ret_done = MIN(*ret_done, CHUNK);
    if (reads_zero(&of_a) || reads_zero(&of_b)) {
        return compare_data(cmp, reads_zero(&of_a) ? b : a, NULL, offset, *ret_done);
    }
    return compare_data(cmp, a, b, offset, *ret_done);
}

static int compare_common(Comparison *cmp, int64_t end)
{
    int64_t offset = 0, done;

    while (offset < end) {
        int status = compare_range(cmp, offset, MIN(end - offset, STEP_MAX), &done);

        if (status != STATUS_SAME) {
            return status;
        }
        offset += done;
        if (cmp->progress) {
            tool_progress((double)offset / (double)cmp->total);
        }
    }
    return STATUS_SAME;
}

/* What the longer one has more must be zeroes. */
static int compare_rest(Comparison *cmp, Side *longer, int64_t offset)
{
    while (offset < longer->size) {
        BlockStatus status;
        int ret = STATUS_SAME;

        if (!get_status(longer, offset, MIN(longer->size - offset, STEP_MAX), &status)) {
            return STATUS_NO_MAP;
        }
        if (!reads_zero(&status)) {
            ret = compare_data(cmp, longer, NULL, offset, status.bytes);
        }
        if (ret != STATUS_SAME) {
            return ret;
        }
        offset += status.bytes;
        if (cmp->progress) {
            tool_progress((double)offset / (double)cmp->total);
        }
    }
    return STATUS_SAME;
}

static int compare_images(Comparison *cmp)
{
    Side *a = &cmp->sides[0], *b = &cmp->sides[1];
    int64_t end = MIN(a->size, b->size);
    int status;

    cmp->total = MAX(a->size, b->size);
    if (cmp->strict && a->size != b->size) {
        say(cmp, "Strict mode: Image size mismatch!\n");
        return STATUS_DIFFERENT;
    }
    if (cmp->progress) {
        tool_progress(0);
    }
    status = compare_common(cmp, end);
    if (status == STATUS_SAME && a->size != b->size) {
        say(cmp, "Warning: Image size mismatch!\n");
        status = compare_rest(cmp, a->size > b->size ? a : b, end);
    }
    if (status == STATUS_SAME) {
        say(cmp, "Images are identical.\n");
    }
    if (cmp->progress) {
        tool_progress_end();
    }
    return status;
}

/* --- the command --- */

static int run(Comparison *cmp)
{
    int status = STATUS_NOT_OPENED;
    size_t n = 0;

    for (; n < 2; n++) {
        Side *side = &cmp->sides[n];

        side->image = image_open(&side->source);
        if (!side->image) {
            break;
        }
        side->size = backend_size(side->image);
        side->buffer = node_try_buffer(backend_node(side->image), CHUNK);
    }
    if (n == 2) {
        status = compare_images(cmp);
    }
    for (size_t i = 0; i < 2; i++) {
        if (cmp->sides[i].buffer) {
            buffer_free(cmp->sides[i].buffer);
        }
        backend_free(cmp->sides[i].image);
    }
    return status;
}

int img_compare(int argc, char **argv)
{
    Comparison cmp = { 0 };
    ImageSource *a = &cmp.sides[0].source, *b = &cmp.sides[1].source;
    int option;

    while ((option = img_getopt(argc, argv, ":hf:F:T:pqsU", options)) != -1) {
        switch (option) {
        case 'f':
            a->format = optarg;
            break;
        case 'F':
            b->format = optarg;
            break;
        case 'T':
            a->cache = b->cache = optarg;
            break;
        case 'p':
            cmp.progress = true;
            break;
        case 'q':
            cmp.quiet = true;
            break;
        case 's':
            cmp.strict = true;
            break;
        case 'U':
            a->force_share = b->force_share = true;
            break;
        case OPTION_IMAGE_OPTS:
            a->image_opts = b->image_opts = true;
            break;
        }
    }
    if (optind != argc - 2) {
        img_usage_error("Expecting two image file names");
    }
    a->name = argv[optind];
    b->name = argv[optind + 1];
    cmp.progress &= !cmp.quiet;
    if (a->cache && !image_cache_is_valid(a->cache)) {
        tool_error("Invalid source cache option: %s", a->cache);
        return STATUS_NOT_OPENED;
    }
    return run(&cmp);
}
