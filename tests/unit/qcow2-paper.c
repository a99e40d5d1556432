/* SPDX-License-Identifier: MIT */
#include "qcow2-paper.h"

#include "block/driver.h"
#include "block/qcow2/header.h"

#include <errno.h>
#include <string.h>

#define FILE_BYTES ((size_t)PAPER_CLUSTERS << PAPER_CLUSTER_BITS)

typedef struct PaperWrite {
    int64_t offset, bytes;
    uint8_t *data;
} PaperWrite;

static Paper *current;

static void free_write(gpointer opaque)
{
    PaperWrite *write = opaque;

    g_free(write->data);
    g_free(write);
}

/* --- the file --- */

/* One more step; false when the power is off. */
static bool step(void)
{
    if (current->steps_left == 0) {
        current->dead = true;
    }
    if (current->dead) {
        return false;
    }
    current->steps++;
    current->steps_left--;
    return true;
}

int coroutine_fn qcow2_meta_read(Qcow2 *q, int64_t host, void *buf, int64_t bytes)
{
    g_assert_cmpint(host + bytes, <=, FILE_BYTES);
    current->reads++;
    memcpy(buf, current->data + host, bytes);
    return current->dead ? -EIO : 0;
}

int coroutine_fn qcow2_meta_write(Qcow2 *q, int64_t host, const void *buf, int64_t bytes,
                                  unsigned ignore)
{
    PaperWrite *write;

    coroutine_pause();
    if (!step()) {
        return -EIO;
    }
    g_assert_cmpint(host + bytes, <=, FILE_BYTES);
    for (int64_t at = host; at < host + bytes; at += 512) {
        g_assert_cmpuint(current->refcounts[at >> PAPER_CLUSTER_BITS], ==, 1);
    }
    write = g_new(PaperWrite, 1);
    *write = (PaperWrite){ host, bytes, g_memdup2(buf, bytes) };
    g_ptr_array_add(current->writes, write);
    memcpy(current->data + host, buf, bytes);
    return 0;
}

int coroutine_fn qcow2_sync(Qcow2 *q)
{
    coroutine_pause();
    if (!step()) {
        return -EIO;
    }
    memcpy(current->durable, current->data, FILE_BYTES);
    g_ptr_array_set_size(current->writes, 0);
    return 0;
}

/* --- clusters --- */

int64_t coroutine_fn qcow2_alloc(Qcow2 *q, int64_t bytes)
{
    int n = (int)size_to_clusters(q, bytes), run = 0;

    for (int i = 1; i < PAPER_CLUSTERS; i++) {
        run = current->refcounts[i] ? 0 : run + 1;
        if (run == n) {
            memset(current->refcounts + i + 1 - n, 1, n);
            return (int64_t)(i + 1 - n) << PAPER_CLUSTER_BITS;
        }
    }
    return -ENOSPC;
}

void qcow2_free(Qcow2 *q, int64_t host, int64_t bytes, Qcow2DiscardType type)
{
    for (int64_t end = host + bytes; host < end; host += q->cluster_size) {
        int cluster = (int)(host >> PAPER_CLUSTER_BITS);

        g_assert_cmpuint(current->refcounts[cluster], ==, 1);
        g_array_append_val(current->freed, cluster);
    }
}

int coroutine_fn qcow2_refcount_get(Qcow2 *q, int64_t cluster_index, uint64_t *ret)
{
    *ret = current->refcounts[cluster_index];
    return 0;
}

int coroutine_fn qcow2_writeback(Qcow2 *q)
{
    int ret = qcow2_sync(q);

    if (ret < 0) {
        return ret;
    }
    memcpy(current->durable_refcounts, current->refcounts, sizeof(current->refcounts));
    for (guint i = 0; i < current->freed->len; i++) {
        int cluster = g_array_index(current->freed, int, i);

        g_assert_cmpuint(current->refcounts[cluster], ==, 1);
        current->refcounts[cluster] = 0;
        /* Whoever still reads it reads this. */
        memset(current->data + ((size_t)cluster << PAPER_CLUSTER_BITS), 0xee,
               (size_t)1 << PAPER_CLUSTER_BITS);
    }
    g_array_set_size(current->freed, 0);
    return 0;
}

int coroutine_fn qcow2_check_overlap(Qcow2 *q, unsigned ignore, int64_t host, int64_t bytes)
{
    return 0;
}

/* --- life --- */

static uint32_t be32(const uint8_t *buf)
{
    uint32_t value;

    memcpy(&value, buf, sizeof(value));
    return GUINT32_FROM_BE(value);
}

static uint64_t be64(const uint8_t *buf)
{
    return (uint64_t)be32(buf) << 32 | be32(buf + 4);
}

/* The header's part about bitmaps, as it lies in the file. */
static void read_header(Qcow2 *q)
{
    const uint8_t *at = current->data + be32(current->data + 100);

    q->header.autoclear = be64(current->data + offsetof(Qcow2DiskHeader, autoclear));
    for (; be32(at) != QCOW2_EXT_END; at += 8 + ((be32(at + 4) + 7) & ~7u)) {
        if (be32(at) == QCOW2_EXT_BITMAPS) {
            q->header.has_bitmaps = true;
            q->header.n_bitmaps = be32(at + 8);
            q->header.bitmap_dir_bytes = (int64_t)be64(at + 16);
            q->header.bitmap_dir_offset = (int64_t)be64(at + 24);
        }
    }
}

static Qcow2 *bare_image(int64_t disk_size, bool read_only)
{
    static BlockChild file;
    static BlockNode storage;
    Qcow2 *q = g_new0(Qcow2, 1);

    atomic_store(&storage.size, FILE_BYTES);
    file.node = &storage;
    q->node = g_new0(BlockNode, 1);
    q->node->node_name = g_strdup("disk0");
    q->node->file = &file;
    q->node->children = g_ptr_array_new(); /* none: it stands alone */
    q->node->read_only = read_only;
    q->node->bitmaps = bitmap_list_new("disk0", disk_size);
    qcow2_header_init(&q->header);
    q->header.version = 3;
    q->header.cluster_bits = PAPER_CLUSTER_BITS;
    q->header.size = disk_size;
    q->cluster_size = 1 << PAPER_CLUSTER_BITS;
    co_mutex_init(&q->lock);
    g_mutex_init(&q->table_lock);
    return q;
}

Paper *paper_new(int64_t disk_size)
{
    Paper *paper = g_new0(Paper, 1);
    g_autofree uint8_t *header = NULL;
    size_t bytes;
    Qcow2 *q;

    paper->data = g_malloc0(FILE_BYTES);
    paper->durable = g_malloc0(FILE_BYTES);
    paper->writes = g_ptr_array_new_with_free_func(free_write);
    paper->freed = g_array_new(FALSE, FALSE, sizeof(int));
    paper->refcounts[0] = paper->durable_refcounts[0] = 1;
    paper->steps_left = -1;
    current = paper;
    q = bare_image(disk_size, false);
    header = qcow2_header_encode(&q->header, &bytes, NULL);
    g_assert_nonnull(header);
    memcpy(paper->data, header, bytes);
    memcpy(paper->durable, header, bytes);
    paper_drop(q);
    return paper;
}

void paper_free(Paper *paper)
{
    g_free(paper->data);
    g_free(paper->durable);
    g_ptr_array_unref(paper->writes);
    g_array_unref(paper->freed);
    g_free(paper);
}

Qcow2 *paper_open(Paper *paper, int64_t disk_size, bool read_only)
{
    Qcow2 *q = bare_image(disk_size, read_only);

    current = paper;
    read_header(q);
    qcow2_bitmaps_open(q);
    return q;
}

void paper_drop(Qcow2 *q)
{
    if (q->bitmaps) {
        q->node->read_only = true; /* nothing is stored */
        qcow2_bitmaps_close(q);
    }
    qcow2_header_done(&q->header);
    bitmap_list_free(q->node->bitmaps);
    co_mutex_done(&q->lock);
    g_mutex_clear(&q->table_lock);
    g_ptr_array_free(q->node->children, TRUE);
    g_free(q->node->node_name);
    g_free(q->node);
    g_free(q);
}

void paper_close(Qcow2 *q)
{
    qcow2_bitmaps_close(q);
    paper_drop(q);
}

/* --- after the power failed --- */

static void count_reference(int64_t host, int64_t bytes, const char *what, void *opaque)
{
    uint8_t *counts = opaque;

    for (int64_t end = host + bytes; host < end; host += 1 << PAPER_CLUSTER_BITS) {
        counts[host >> PAPER_CLUSTER_BITS]++;
    }
}

static void no_fault(const char *words, void *opaque)
{
    g_error("%s", words);
}

typedef struct CheckCall {
    Qcow2 *q;
    uint8_t counts[PAPER_CLUSTERS];
} CheckCall;

static void coroutine_fn check_entry(void *opaque)
{
    CheckCall *call = opaque;
    Qcow2BitmapCheck check = { count_reference, no_fault, call->counts };

    call->counts[0] = 1;
    g_assert_cmpint(qcow2_bitmaps_check(call->q, &check), ==, 0);
}

void paper_check(Qcow2 *q, bool exact)
{
    CheckCall call = { .q = q };

    coroutine_run(check_entry, &call);
    for (int i = 0; i < PAPER_CLUSTERS; i++) {
        g_assert_cmpuint(call.counts[i], <=, 1);
        g_assert_cmpuint(call.counts[i], <=, current->durable_refcounts[i]);
        if (exact) {
            g_assert_cmpuint(call.counts[i], ==, current->refcounts[i]);
        }
    }
}

void paper_restart(Paper *paper, GRand *random, double chance)
{
    CheckCall call = { 0 };
    g_autofree uint8_t *file = g_memdup2(paper->durable, FILE_BYTES);

    for (guint i = 0; i < paper->writes->len; i++) {
        PaperWrite *write = g_ptr_array_index(paper->writes, i);

        for (int64_t at = 0; at < write->bytes;) {
            int64_t n = MIN(512 - (write->offset + at) % 512, write->bytes - at);

            if (g_rand_double(random) < chance) {
                memcpy(file + write->offset + at, write->data + at, n);
            }
            at += n;
        }
    }
    memcpy(paper->data, file, FILE_BYTES);
    memcpy(paper->durable, file, FILE_BYTES);
    g_ptr_array_set_size(paper->writes, 0);
    g_array_set_size(paper->freed, 0);
    paper->dead = false;
    paper->steps_left = -1;
    call.q = paper_open(paper, (int64_t)be64(paper->data + 24), true);
    paper_check(call.q, false);
    coroutine_run(check_entry, &call);
    memcpy(paper->refcounts, call.counts, sizeof(call.counts));
    memcpy(paper->durable_refcounts, call.counts, sizeof(call.counts));
    paper_drop(call.q);
}
