/* SPDX-License-Identifier: MIT */
#include "bitmap-directory.h"

#include <inttypes.h>
#include <string.h>

#define ENTRY_HEAD sizeof(Qcow2DiskBitmap)
#define ENTRY_MIN  (ENTRY_HEAD + 8)

/* --- entries --- */

Qcow2BitmapEntry *qcow2_bitmap_entry_new(const char *name, int64_t granularity)
{
    Qcow2BitmapEntry *entry = g_new0(Qcow2BitmapEntry, 1);

    entry->name = g_strdup(name);
    entry->raw_name_bytes = strlen(name);
    entry->raw_name = g_memdup2(name, entry->raw_name_bytes);
    entry->type = QCOW2_BITMAP_TYPE_DIRTY;
    entry->granularity_bits = __builtin_ctzll(granularity);
    entry->position = -1;
    entry->refs = 1;
    return entry;
}

Qcow2BitmapEntry *qcow2_bitmap_entry_ref(Qcow2BitmapEntry *entry)
{
    entry->refs++;
    return entry;
}

void qcow2_bitmap_entry_unref(Qcow2BitmapEntry *entry)
{
    if (--entry->refs == 0) {
        g_free(entry->name);
        g_free(entry->raw_name);
        g_free(entry->extra);
        g_free(entry->fault);
        g_free(entry->table);
        g_free(entry);
    }
}

void qcow2_bitmap_entry_fault(Qcow2BitmapEntry *entry, const char *format, ...)
{
    va_list args;

    if (!entry->fault) {
        va_start(args, format);
        entry->fault = g_strdup_vprintf(format, args);
        va_end(args);
    }
    entry->to_be_marked = true;
}

GPtrArray *qcow2_bitmap_entries_new(void)
{
    return g_ptr_array_new_with_free_func((GDestroyNotify)qcow2_bitmap_entry_unref);
}

void qcow2_bitmap_directory_init(Qcow2BitmapDirectory *ret)
{
    ret->entries = qcow2_bitmap_entries_new();
    ret->faults = g_ptr_array_new_with_free_func(g_free);
}

void qcow2_bitmap_directory_done(Qcow2BitmapDirectory *directory)
{
    g_ptr_array_unref(directory->entries);
    g_ptr_array_unref(directory->faults);
}

static size_t padded(uint64_t bytes)
{
    return (bytes + 7) & ~UINT64_C(7);
}

size_t qcow2_bitmap_entry_bytes(const Qcow2BitmapEntry *entry)
{
    return padded(ENTRY_HEAD + entry->extra_bytes + entry->raw_name_bytes);
}

/* --- sizes --- */

static uint64_t divide_up(uint64_t a, unsigned bits)
{
    return (a >> bits) + ((a & ((UINT64_C(1) << bits) - 1)) != 0);
}

uint64_t qcow2_bitmap_bits(int64_t disk_size, unsigned granularity_bits)
{
    return divide_up(disk_size, granularity_bits);
}

uint64_t qcow2_bitmap_data_bytes(int64_t disk_size, unsigned granularity_bits)
{
    return divide_up(qcow2_bitmap_bits(disk_size, granularity_bits), 3);
}

/* QEMU does not open an image with a table of no entries, so a disk without size has one. */
uint64_t qcow2_bitmap_table_entries(const Qcow2BitmapGeometry *geometry, unsigned granularity_bits)
{
    uint64_t bytes = qcow2_bitmap_data_bytes(geometry->disk_size, granularity_bits);

    return MAX(divide_up(bytes, geometry->cluster_bits), 1);
}

bool qcow2_bitmap_fits(const Qcow2BitmapGeometry *geometry, unsigned granularity_bits)
{
    return qcow2_bitmap_data_bytes(geometry->disk_size, granularity_bits) <=
               QCOW2_MAX_BITMAP_DATA &&
           qcow2_bitmap_table_entries(geometry, granularity_bits) <= QCOW2_MAX_BITMAP_TABLE / 8;
}

bool qcow2_bitmap_range_ok(const Qcow2BitmapGeometry *geometry, uint64_t offset, uint64_t bytes)
{
    uint64_t cluster = UINT64_C(1) << geometry->cluster_bits;
    uint64_t end = divide_up(geometry->file_size, geometry->cluster_bits) << geometry->cluster_bits;

    return offset != 0 && offset % cluster == 0 && offset <= end && bytes <= end - offset;
}

const char *qcow2_bitmap_table_entry_fault(const Qcow2BitmapGeometry *geometry, uint64_t value)
{
    uint64_t offset = value & QCOW2_BITMAP_OFFSET_MASK;

    if (value & ~(QCOW2_BITMAP_OFFSET_MASK | QCOW2_BITMAP_ALL_ONES)) {
        return "has reserved bits set";
    }
    if (!offset) {
        return NULL;
    }
    if (value & QCOW2_BITMAP_ALL_ONES) {
        return "has both a cluster and the all-ones flag";
    }
    if (!qcow2_bitmap_range_ok(geometry, offset, UINT64_C(1) << geometry->cluster_bits)) {
        return "refers to no cluster of the file";
    }
    return NULL;
}

/* --- frames: does an entry stand here? --- */

typedef struct Parser {
    const uint8_t *buf;
    size_t bytes;
    const Qcow2BitmapGeometry *geometry;
} Parser;

/* An entry as it lies in the buffer, in host order. */
typedef struct Frame {
    Qcow2DiskBitmap head;
    size_t name_at; /* in the buffer */
    size_t end;     /* padding included */
} Frame;

static bool is_zero(const uint8_t *buf, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (buf[i]) {
            return false;
        }
    }
    return true;
}

static Qcow2DiskBitmap read_head(const uint8_t *buf)
{
    Qcow2DiskBitmap head;

    memcpy(&head, buf, sizeof(head));
    head.table_offset = GUINT64_FROM_BE(head.table_offset);
    head.table_entries = GUINT32_FROM_BE(head.table_entries);
    head.flags = GUINT32_FROM_BE(head.flags);
    head.name_bytes = GUINT16_FROM_BE(head.name_bytes);
    head.extra_bytes = GUINT32_FROM_BE(head.extra_bytes);
    return head;
}

/* Whether the lengths at `pos` make sense, and the name and the padding with them. */
static bool frame_at(const Parser *parser, size_t pos, Frame *ret)
{
    uint64_t unpadded;

    if (pos > parser->bytes || parser->bytes - pos < ENTRY_MIN) {
        return false;
    }
    ret->head = read_head(parser->buf + pos);
    if (ret->head.name_bytes == 0 || ret->head.name_bytes > QCOW2_MAX_BITMAP_NAME) {
        return false;
    }
    unpadded = ENTRY_HEAD + (uint64_t)ret->head.extra_bytes + ret->head.name_bytes;
    if (padded(unpadded) > parser->bytes - pos) {
        return false;
    }
    ret->name_at = pos + ENTRY_HEAD + ret->head.extra_bytes;
    ret->end = pos + padded(unpadded);
    return !memchr(parser->buf + ret->name_at, 0, ret->head.name_bytes) &&
           is_zero(parser->buf + pos + unpadded, padded(unpadded) - unpadded);
}

/* Whether what stands at `pos` makes sense as an entry in every field. */
static bool entry_stands_at(const Parser *parser, size_t pos)
{
    Frame frame;

    return frame_at(parser, pos, &frame) && frame.head.type == QCOW2_BITMAP_TYPE_DIRTY &&
           frame.head.flags < 2 * QCOW2_BITMAP_EXTRA_COMPATIBLE &&
           frame.head.granularity_bits >= QCOW2_MIN_BITMAP_BITS &&
           frame.head.granularity_bits <= QCOW2_MAX_BITMAP_BITS &&
           qcow2_bitmap_range_ok(parser->geometry, frame.head.table_offset,
                                 UINT64_C(8) * frame.head.table_entries);
}

/* The next such place after `pos`, or `limit`. */
static size_t next_entry(const Parser *parser, size_t pos, size_t limit)
{
    for (pos += 8; pos < limit; pos += 8) {
        if (entry_stands_at(parser, pos)) {
            return pos;
        }
    }
    return limit;
}

/* Whether [pos, end) could be one entry whose name is longer than it says. */
static bool name_goes_on(const Parser *parser, size_t pos, size_t end)
{
    size_t name_end = end;

    while (name_end > pos + ENTRY_HEAD && end - name_end < 7 && !parser->buf[name_end - 1]) {
        name_end--;
    }
    return name_end - (pos + ENTRY_HEAD) <= QCOW2_MAX_BITMAP_NAME &&
           !memchr(parser->buf + pos + ENTRY_HEAD, 0, name_end - (pos + ENTRY_HEAD));
}

/* --- what is found becomes entries --- */

static Qcow2BitmapEntry *entry_from(const Parser *parser, size_t pos, const Qcow2DiskBitmap *head)
{
    Qcow2BitmapEntry *entry = g_new0(Qcow2BitmapEntry, 1);

    entry->refs = 1;
    entry->table_offset = (int64_t)head->table_offset;
    entry->table_entries = head->table_entries;
    entry->flags = head->flags;
    entry->type = head->type;
    entry->granularity_bits = head->granularity_bits;
    entry->position = (int64_t)pos;
    entry->stored_size = parser->geometry->disk_size;
    return entry;
}

static void set_name(Qcow2BitmapEntry *entry, const uint8_t *name, size_t bytes)
{
    entry->raw_name = g_memdup2(name, bytes);
    entry->raw_name_bytes = bytes;
    entry->name = g_utf8_make_valid((const char *)name, (gssize)bytes);
    if (!g_utf8_validate((const char *)name, (gssize)bytes, NULL)) {
        qcow2_bitmap_entry_fault(entry, "its name is not valid UTF-8");
    }
}

static void check_table_place(Qcow2BitmapEntry *entry, const Qcow2BitmapGeometry *geometry)
{
    uint64_t needed = qcow2_bitmap_table_entries(geometry, entry->granularity_bits);
    bool in_use = entry->flags & QCOW2_BITMAP_IN_USE;

    if (!qcow2_bitmap_fits(geometry, entry->granularity_bits)) {
        qcow2_bitmap_entry_fault(entry, "it is too large for the format");
    } else if (entry->table_entries > QCOW2_MAX_BITMAP_TABLE / 8 ||
               (entry->table_entries != needed && !in_use)) {
        qcow2_bitmap_entry_fault(entry, "its table has %" PRIu32 " entries in place of %" PRIu64,
                                 entry->table_entries, needed);
    } else if (!qcow2_bitmap_range_ok(geometry, (uint64_t)entry->table_offset,
                                      UINT64_C(8) * entry->table_entries)) {
        qcow2_bitmap_entry_fault(entry, "its table lies at 0x%" PRIx64 ", which cannot be",
                                 (uint64_t)entry->table_offset);
    }
}

static void check_fields(Qcow2BitmapEntry *entry, const Qcow2BitmapGeometry *geometry)
{
    if (entry->type != QCOW2_BITMAP_TYPE_DIRTY) {
        qcow2_bitmap_entry_fault(entry, "its type %u is unknown", entry->type);
    } else if (entry->flags >= 2 * QCOW2_BITMAP_EXTRA_COMPATIBLE) {
        qcow2_bitmap_entry_fault(entry, "its flags 0x%" PRIx32 " are unknown",
                                 (uint32_t)entry->flags);
    } else if (entry->granularity_bits < QCOW2_MIN_BITMAP_BITS ||
               entry->granularity_bits > QCOW2_MAX_BITMAP_BITS) {
        qcow2_bitmap_entry_fault(entry, "its granularity of 2^%u bytes is out of bounds",
                                 entry->granularity_bits);
    } else if (entry->extra_bytes && !(entry->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE)) {
        qcow2_bitmap_entry_fault(entry, "it has extra data of an unknown kind");
    } else {
        check_table_place(entry, geometry);
    }
}

static Qcow2BitmapEntry *take_frame(const Parser *parser, size_t pos, const Frame *frame)
{
    Qcow2BitmapEntry *entry = entry_from(parser, pos, &frame->head);

    entry->extra_bytes = frame->head.extra_bytes;
    entry->extra = g_memdup2(parser->buf + pos + ENTRY_HEAD, entry->extra_bytes);
    set_name(entry, parser->buf + frame->name_at, frame->head.name_bytes);
    check_fields(entry, parser->geometry);
    return entry;
}

/* [pos, end) is no entry, or several of which none can be told. */
static Qcow2BitmapEntry *take_broken(const Parser *parser, size_t pos, size_t end)
{
    const uint8_t *name = parser->buf + pos + ENTRY_HEAD;
    size_t most = MIN(end - pos - ENTRY_HEAD, QCOW2_MAX_BITMAP_NAME);
    const uint8_t *nul = memchr(name, 0, most);
    Qcow2DiskBitmap head = read_head(parser->buf + pos);
    Qcow2BitmapEntry *entry = entry_from(parser, pos, &head);

    qcow2_bitmap_entry_fault(entry, "its entry in the bitmap directory is damaged");
    set_name(entry, name, nul ? (size_t)(nul - name) : most);
    return entry;
}

/* --- the whole --- */

static void add_fault(Qcow2BitmapDirectory *directory, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void add_fault(Qcow2BitmapDirectory *directory, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_ptr_array_add(directory->faults, g_strdup_vprintf(format, args));
    va_end(args);
}

/* Whether the frame at `pos` may be believed. One with extra data that we do not know may be a
 * sound one that swallowed others. */
static bool believable_at(const Parser *parser, size_t pos, Frame *ret)
{
    return frame_at(parser, pos, ret) &&
           (ret->head.extra_bytes == 0 || (ret->head.flags & QCOW2_BITMAP_EXTRA_COMPATIBLE) ||
            next_entry(parser, pos, ret->end) == ret->end);
}

/* Take what stands at `pos`; returns where it ends. */
static size_t parse_one(const Parser *parser, size_t pos, size_t limit, Qcow2BitmapDirectory *ret)
{
    Frame frame, next;
    bool framed = believable_at(parser, pos, &frame);
    size_t end;

    if (framed && (frame.end >= limit || frame_at(parser, frame.end, &next))) {
        g_ptr_array_add(ret->entries, take_frame(parser, pos, &frame));
        return frame.end;
    }
    end = next_entry(parser, framed ? frame.end : pos, limit);
    if (framed && !name_goes_on(parser, pos, end)) {
        g_ptr_array_add(ret->entries, take_frame(parser, pos, &frame));
        return frame.end;
    }
    if (end - pos >= ENTRY_MIN && !is_zero(parser->buf + pos, end - pos)) {
        g_ptr_array_add(ret->entries, take_broken(parser, pos, end));
    }
    add_fault(ret, "The bitmap directory is damaged at byte %zu", pos);
    return end;
}

/* Names are what bitmaps are known by: none may be empty, or there twice. */
static void settle_names(Qcow2BitmapDirectory *directory)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < directory->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(directory->entries, i);
        Qcow2BitmapEntry *other = g_hash_table_lookup(seen, entry->name);
        g_autofree char *wanted = g_strdup(*entry->name ? entry->name : "unnamed");

        if (other) {
            qcow2_bitmap_entry_fault(entry, "another bitmap has the same name");
            qcow2_bitmap_entry_fault(other, "another bitmap has the same name");
        }
        if (other || !*entry->name) {
            add_fault(directory, other ? "Two bitmaps are named '%s'" : "A bitmap has no name%s",
                      entry->name);
            for (unsigned n = 2; n == 2 || g_hash_table_contains(seen, entry->name); n++) {
                g_free(entry->name);
                entry->name = g_strdup_printf("%.*s (%u)", 1000, wanted, n);
                g_free(g_steal_pointer(&entry->raw_name));
                entry->raw_name_bytes = strlen(entry->name);
                entry->raw_name = g_memdup2(entry->name, entry->raw_name_bytes);
            }
        }
        g_hash_table_insert(seen, entry->name, entry);
    }
}

void qcow2_bitmap_directory_parse(const uint8_t *buf, size_t bytes, uint64_t said_bytes,
                                  uint32_t said_n, const Qcow2BitmapGeometry *geometry,
                                  Qcow2BitmapDirectory *ret)
{
    Parser parser = { buf, bytes, geometry };
    bool bytes_ok = said_bytes > 0 && said_bytes <= bytes && said_bytes % 8 == 0;
    bool n_ok = said_n > 0 && said_n <= QCOW2_MAX_BITMAPS;
    size_t limit = bytes_ok ? said_bytes : bytes & ~(size_t)7;
    guint most = bytes_ok || !n_ok ? QCOW2_MAX_BITMAPS : said_n;
    size_t pos = 0;

    while (limit - MIN(pos, limit) >= ENTRY_HEAD && ret->entries->len < most) {
        pos = parse_one(&parser, pos, limit, ret);
    }
    while (n_ok && ret->entries->len < said_n && entry_stands_at(&parser, pos)) {
        pos = parse_one(&parser, pos, bytes & ~(size_t)7, ret);
    }
    if (pos != said_bytes) {
        add_fault(ret, "The bitmap directory takes %zu bytes in place of %" PRIu64, pos,
                  said_bytes);
    }
    if (ret->entries->len != said_n) {
        add_fault(ret, "The bitmap directory has %u entries in place of %" PRIu32,
                  ret->entries->len, said_n);
    }
    settle_names(ret);
}

GByteArray *qcow2_bitmap_directory_encode(GPtrArray *entries)
{
    static const uint8_t zeroes[8];
    GByteArray *out = g_byte_array_new();

    for (guint i = 0; i < entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(entries, i);
        Qcow2DiskBitmap head = {
            .table_offset = GUINT64_TO_BE((uint64_t)entry->table_offset),
            .table_entries = GUINT32_TO_BE(entry->table_entries),
            .flags = GUINT32_TO_BE(entry->flags),
            .type = entry->type,
            .granularity_bits = entry->granularity_bits,
            .name_bytes = GUINT16_TO_BE((uint16_t)entry->raw_name_bytes),
            .extra_bytes = GUINT32_TO_BE(entry->extra_bytes),
        };

        entry->position = out->len;
        g_byte_array_append(out, (const uint8_t *)&head, sizeof(head));
        if (entry->extra_bytes) {
            g_byte_array_append(out, entry->extra, entry->extra_bytes);
        }
        g_byte_array_append(out, entry->raw_name, entry->raw_name_bytes);
        g_byte_array_append(out, zeroes, padded(out->len) - out->len);
    }
    return out;
}
