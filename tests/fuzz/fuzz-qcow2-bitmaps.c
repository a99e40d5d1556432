/* SPDX-License-Identifier: MIT */
/*
 * The bitmap directory of a qcow2 image, and bitmap tables: any bytes, under any numbers of the
 * header. An input is the numbers (24 bytes), then the directory; its bytes serve as tables, too.
 *
 * What must hold: names are usable and differ; what has no fault is within the limits; a directory
 * without faults is, encoded again, the same bytes; and one with faults, written anew, keeps its
 * sound entries.
 */
#include "fuzz.h"

#include "block/qcow2/bitmap-directory.h"

#include <string.h>

#define HEAD 24

typedef struct Numbers {
    uint64_t bytes;
    uint32_t n;
    Qcow2BitmapGeometry geometry;
} Numbers;

static Numbers read_numbers(const uint8_t *data)
{
    Numbers numbers;

    memcpy(&numbers.bytes, data, 8);
    memcpy(&numbers.n, data + 8, 4);
    numbers.bytes = GUINT64_FROM_BE(numbers.bytes);
    numbers.n = GUINT32_FROM_BE(numbers.n);
    numbers.geometry = (Qcow2BitmapGeometry){
        .cluster_bits = QCOW2_MIN_CLUSTER_BITS +
                        data[12] % (QCOW2_MAX_CLUSTER_BITS - QCOW2_MIN_CLUSTER_BITS + 1),
        .disk_size = (INT64_C(1) << data[13] % 63) + data[14],
        .file_size = (INT64_C(1) << data[15] % 63) + data[16],
    };
    return numbers;
}

static Qcow2BitmapDirectory parse(const Numbers *numbers, const uint8_t *buf, size_t bytes)
{
    Qcow2BitmapDirectory directory;

    qcow2_bitmap_directory_init(&directory);
    qcow2_bitmap_directory_parse(buf, bytes, numbers->bytes, numbers->n, &numbers->geometry,
                                 &directory);
    return directory;
}

static void check_entry(const Numbers *numbers, const Qcow2BitmapEntry *entry, GHashTable *names)
{
    if (!*entry->name || !g_utf8_validate(entry->name, -1, NULL) ||
        !g_hash_table_add(names, entry->name)) {
        fuzz_fail("name '%s'", entry->name);
    }
    if (entry->raw_name_bytes > UINT16_MAX) {
        fuzz_fail("a name of %zu bytes", entry->raw_name_bytes);
    }
    if (entry->fault) {
        return;
    }
    if (entry->type != QCOW2_BITMAP_TYPE_DIRTY || entry->granularity_bits < QCOW2_MIN_BITMAP_BITS ||
        entry->granularity_bits > QCOW2_MAX_BITMAP_BITS ||
        entry->table_entries > QCOW2_MAX_BITMAP_TABLE / 8 ||
        !qcow2_bitmap_fits(&numbers->geometry, entry->granularity_bits) ||
        !qcow2_bitmap_range_ok(&numbers->geometry, (uint64_t)entry->table_offset,
                               UINT64_C(8) * entry->table_entries)) {
        fuzz_fail("'%s' has no fault", entry->name);
    }
}

static void check_entries(const Numbers *numbers, const Qcow2BitmapDirectory *directory)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);

    if (directory->entries->len > QCOW2_MAX_BITMAPS) {
        fuzz_fail("%u entries", directory->entries->len);
    }
    for (guint i = 0; i < directory->entries->len; i++) {
        check_entry(numbers, g_ptr_array_index(directory->entries, i), names);
    }
}

static Qcow2BitmapEntry *find(const Qcow2BitmapDirectory *directory, const char *name)
{
    for (guint i = 0; i < directory->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(directory->entries, i);

        if (strcmp(entry->name, name) == 0) {
            return entry;
        }
    }
    return NULL;
}

/* A directory of the sound entries alone is as sound. */
static void check_again(const Numbers *numbers, const Qcow2BitmapDirectory *directory)
{
    g_autoptr(GPtrArray) sound = qcow2_bitmap_entries_new();
    g_autoptr(GByteArray) bytes = NULL;
    Numbers anew = *numbers;
    Qcow2BitmapDirectory again;

    for (guint i = 0; i < directory->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(directory->entries, i);

        if (!entry->fault) {
            g_ptr_array_add(sound, qcow2_bitmap_entry_ref(entry));
        }
    }
    if (!sound->len) {
        return;
    }
    bytes = qcow2_bitmap_directory_encode(sound);
    anew.bytes = bytes->len;
    anew.n = sound->len;
    again = parse(&anew, bytes->data, bytes->len);
    if (again.faults->len || again.entries->len != sound->len) {
        fuzz_fail("written anew: %u faults, %u entries", again.faults->len, again.entries->len);
    }
    for (guint i = 0; i < sound->len; i++) {
        Qcow2BitmapEntry *before = g_ptr_array_index(sound, i);
        Qcow2BitmapEntry *after = find(&again, before->name);

        if (!after || after->fault || after->table_offset != before->table_offset ||
            after->flags != before->flags) {
            fuzz_fail("'%s' changed", before->name);
        }
    }
    qcow2_bitmap_directory_done(&again);
}

static void check_same_bytes(const Numbers *numbers, const Qcow2BitmapDirectory *directory,
                             const uint8_t *buf)
{
    g_autoptr(GByteArray) bytes = qcow2_bitmap_directory_encode(directory->entries);

    if (bytes->len != numbers->bytes || (bytes->len && memcmp(bytes->data, buf, bytes->len))) {
        fuzz_fail("encoding changed the bytes");
    }
}

/* The input's bytes as the tables of all entries. */
static void try_tables(const Numbers *numbers, const Qcow2BitmapDirectory *directory,
                       const uint8_t *buf, size_t bytes)
{
    int64_t taken[] = { 0, INT64_C(1) << numbers->geometry.cluster_bits };
    size_t most = MIN(bytes / 8, 64);

    for (guint i = 0; i < directory->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(directory->entries, i);

        if (entry->table_entries > most || entry->fault) {
            continue;
        }
        entry->table = g_memdup2(buf, 8 * most);
        for (uint32_t k = 0; k < entry->table_entries; k++) {
            if (qcow2_bitmap_table_entry_fault(&numbers->geometry, entry->table[k])) {
                entry->table[k] = 0;
            }
        }
    }
    qcow2_bitmap_find_overlaps(directory->entries, numbers->geometry.cluster_bits, taken, 2);
}

/* Table ranges that are within the limits may still be of many clusters; a few are enough here. */
static void forget_large_ones(const Qcow2BitmapDirectory *directory)
{
    for (guint i = 0; i < directory->entries->len; i++) {
        Qcow2BitmapEntry *entry = g_ptr_array_index(directory->entries, i);

        if (entry->table_entries > 4096) {
            qcow2_bitmap_entry_fault(entry, "it is too large for this");
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Qcow2BitmapDirectory directory;
    Numbers numbers;

    if (size < HEAD) {
        return 0;
    }
    numbers = read_numbers(data);
    directory = parse(&numbers, data + HEAD, size - HEAD);
    check_entries(&numbers, &directory);
    if (directory.faults->len == 0) {
        check_same_bytes(&numbers, &directory, data + HEAD);
    }
    check_again(&numbers, &directory);
    forget_large_ones(&directory);
    try_tables(&numbers, &directory, data + HEAD, size - HEAD);
    qcow2_bitmap_directory_done(&directory);
    return 0;
}
