/* SPDX-License-Identifier: MIT */
/*
 * Bits on their way to the file.
 *
 * Where a cluster of bits stays, the pages that differ from what is stored are written over it,
 * and what lies between two that are near; a new cluster is written whole. What is stored may not
 * be in memory: then pages are read, added to, and written if that changed them. Ranges that follow
 * one another in the file go in one write, and several writes are under way at once, so neither
 * a slow disk nor a quick one waits for the other side.
 */
#include "bitmap-internal.h"

#include <errno.h>
#include <string.h>

#define PAGE_BYTES INT64_C(4096)
#define GAP_BYTES  PAGE_BYTES           /* less is not worth a write of its own */
#define RUN_BYTES  (INT64_C(128) << 10) /* in one write */
#define FEW_AREAS  32                   /* of dirty bits in a page */

static int64_t page_bytes(const Qcow2 *q)
{
    return MIN(PAGE_BYTES, q->cluster_size);
}

/* --- one piece: pages of one bitmap --- */

/* Which bytes of a buffer are to be written. */
typedef struct Span {
    int64_t begin, end;
} Span;

static void span_add(Span *span, int64_t begin, int64_t bytes)
{
    *span = span->end ? (Span){ MIN(span->begin, begin), MAX(span->end, begin + bytes) }
                      : (Span){ begin, begin + bytes };
}

static uint64_t bits_of_piece(const Qcow2BitsPiece *piece)
{
    uint64_t size = hbitmap_size(piece->what->bits), start = piece->at * 8;

    return start < size ? MIN((uint64_t)piece->bytes * 8, size - start) : 0;
}

static bool set_bits(uint8_t *page, uint64_t bit, uint64_t n)
{
    bool changed = false;

    for (uint64_t end = bit + n; bit < end;) {
        uint64_t in_byte = MIN(8 - bit % 8, end - bit);
        uint8_t mask = (uint8_t)(((1U << in_byte) - 1) << bit % 8);

        changed |= (page[bit / 8] & mask) != mask;
        page[bit / 8] |= mask;
        bit += in_byte;
    }
    return changed;
}

static bool add_all_bits(const HBitmap *bits, uint64_t start, uint64_t n, uint8_t *page)
{
    uint8_t more[PAGE_BYTES];
    uint8_t changed = 0;

    hbitmap_serialize(bits, start, n, more);
    for (uint64_t i = 0; i < (n + 7) / 8; i++) {
        changed |= more[i] & ~page[i];
        page[i] |= more[i];
    }
    return changed;
}

/* Whether that changed the page. */
static bool add_to_page(const HBitmap *bits, uint64_t start, uint64_t n, uint8_t *page)
{
    HBitmapArea areas[FEW_AREAS];
    size_t n_areas = hbitmap_dirty_areas(bits, start, start + n, areas, FEW_AREAS);
    bool changed = false;

    if (n_areas == FEW_AREAS) {
        return add_all_bits(bits, start, n, page);
    }
    for (size_t i = 0; i < n_areas; i++) {
        changed |= set_bits(page, areas[i].start - start, areas[i].len);
    }
    return changed;
}

/* Read what is there, and add to it. */
static int coroutine_fn add_piece(Qcow2 *q, const Qcow2BitsPiece *piece, uint8_t *buf, int64_t at,
                                  Span *span)
{
    uint64_t first = piece->at * 8, n_bits = bits_of_piece(piece);
    int64_t page = page_bytes(q);
    int ret = qcow2_bitmaps_read_bits(q, piece->source, buf + at, piece->bytes);

    for (uint64_t bit = 0; ret >= 0 && bit < n_bits; bit += (uint64_t)page * 8) {
        int64_t byte = at + (int64_t)(bit / 8);
        uint64_t n = MIN((uint64_t)page * 8, n_bits - bit);

        if (add_to_page(piece->what->bits, first + bit, n, buf + byte)) {
            span_add(span, byte, page);
        }
    }
    return ret;
}

static void take_piece(const Qcow2BitsPiece *piece, uint8_t *buf)
{
    uint64_t n_bits = bits_of_piece(piece);
    int64_t there = (int64_t)((n_bits + 7) / 8);

    if (n_bits) {
        hbitmap_serialize(piece->what->bits, piece->at * 8, n_bits, buf);
    }
    memset(buf + there, 0, piece->bytes - there);
}

/* --- one write --- */

static int coroutine_fn write_run(Qcow2 *q, const Qcow2BitsRun *run)
{
    uint8_t *buf = node_try_buffer(q->node->file->node, (size_t)run->bytes);
    int ret = buf ? 0 : -ENOMEM;
    Span span = { 0, 0 };
    int64_t at = 0;

    for (int i = 0; i < run->n && ret >= 0; i++) {
        const Qcow2BitsPiece *piece = &run->pieces[i];
        bool may_be_same = piece->source == run->host + at && !q->bitmaps->bits_unsure;

        if (piece->source) {
            ret = add_piece(q, piece, buf, at, &span);
        } else {
            take_piece(piece, buf + at);
        }
        if (!may_be_same) {
            span_add(&span, at, piece->bytes);
        }
        at += piece->bytes;
    }
    if (ret >= 0 && span.end) {
        ret =
            qcow2_meta_write(q, run->host + span.begin, buf + span.begin, span.end - span.begin, 0);
    }
    buffer_free(buf);
    return ret;
}

static void coroutine_fn run_entry(void *opaque)
{
    Qcow2BitsPart *part = opaque;
    Qcow2BitsWriter *writer = part->writer;
    int ret = write_run(writer->q, &part->run);

    qcow2_parts_end(&writer->parts, part->slot, ret);
}

static void coroutine_fn begin_write(Qcow2BitsWriter *writer)
{
    int slot = writer->next.n ? qcow2_parts_take(&writer->parts) : -1;

    if (slot >= 0) {
        Qcow2BitsPart *part = &writer->slots[slot];

        *part = (Qcow2BitsPart){ writer, slot, writer->next };
        coroutine_start(run_entry, part);
    }
    writer->next.n = 0;
}

/* --- what goes together --- */

static bool continues(const Qcow2BitsPiece *last, const Qcow2BitsPiece *piece)
{
    int64_t source = last->source ? last->source + last->bytes : 0;

    return last->what == piece->what && last->at + (uint64_t)last->bytes == piece->at &&
           source == piece->source;
}

static void coroutine_fn put_piece(Qcow2BitsWriter *writer, int64_t host,
                                   const Qcow2BitsPiece *piece)
{
    Qcow2BitsRun *run = &writer->next;
    Qcow2BitsPiece *last;

    if (run->host + run->bytes != host || run->bytes + piece->bytes > RUN_BYTES ||
        run->n == QCOW2_BITS_PIECES) {
        begin_write(writer);
    }
    if (run->n == 0) {
        run->host = host;
        run->bytes = 0;
    }
    last = run->n ? &run->pieces[run->n - 1] : NULL;
    if (last && continues(last, piece)) {
        last->bytes += piece->bytes;
    } else {
        run->pieces[run->n++] = *piece;
    }
    run->bytes += piece->bytes;
}

/* Bytes [begin, end) of the cluster. */
static void coroutine_fn put(Qcow2BitsWriter *writer, const Qcow2Bits *what,
                             const Qcow2BitsCluster *cluster, int64_t begin, int64_t end)
{
    int64_t host = (int64_t)(what->table[cluster->index] & QCOW2_BITMAP_OFFSET_MASK);
    uint64_t first = cluster->index * (uint64_t)writer->q->cluster_size;

    for (int64_t bytes; begin < end; begin += bytes) {
        Qcow2BitsPiece piece = { .what = what, .at = first + (uint64_t)begin };

        bytes = MIN(end - begin, RUN_BYTES);
        piece.bytes = bytes;
        piece.source = cluster->source ? cluster->source + begin : 0;
        put_piece(writer, host + begin, &piece);
    }
}

/* The first page from `at` on in the cluster that is to be written, or the cluster's size. */
static int64_t next_page(const Qcow2 *q, const Qcow2Bits *what, const Qcow2BitsCluster *cluster,
                         int64_t at)
{
    uint64_t first = cluster->index * (uint64_t)q->cluster_size * 8;
    uint64_t start = first + (uint64_t)at * 8;
    uint64_t end = MIN(first + (uint64_t)q->cluster_size * 8, hbitmap_size(what->bits));
    uint64_t bit = end;

    if (start < end) {
        bit = what->adds ? hbitmap_next_dirty(what->bits, start, end)
                         : hbitmap_next_difference(what->bits, what->known, start, end);
    }
    return bit < end ? (int64_t)((bit - first) / 8) & -page_bytes(q) : q->cluster_size;
}

static void coroutine_fn put_changes(Qcow2BitsWriter *writer, const Qcow2Bits *what,
                                     const Qcow2BitsCluster *cluster)
{
    const Qcow2 *q = writer->q;
    int64_t page = page_bytes(q), begin = next_page(q, what, cluster, 0);

    while (begin < q->cluster_size) {
        int64_t end = begin + page, next = next_page(q, what, cluster, end);

        while (next < q->cluster_size && next - end <= GAP_BYTES) {
            end = next + page;
            next = next_page(q, what, cluster, end);
        }
        put(writer, what, cluster, begin, end);
        begin = next;
    }
}

void coroutine_fn qcow2_bits_write(Qcow2BitsWriter *writer, const Qcow2Bits *what)
{
    for (guint i = 0; i < what->clusters->len && writer->parts.ret == 0; i++) {
        const Qcow2BitsCluster *cluster = &g_array_index(what->clusters, Qcow2BitsCluster, i);

        if (cluster->fresh || (!what->adds && !what->known)) {
            put(writer, what, cluster, 0, writer->q->cluster_size);
        } else {
            put_changes(writer, what, cluster);
        }
    }
}

int coroutine_fn qcow2_bits_end(Qcow2BitsWriter *writer)
{
    begin_write(writer);
    return qcow2_parts_wait(&writer->parts, 0);
}
