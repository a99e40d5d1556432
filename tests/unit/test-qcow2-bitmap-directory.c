/* SPDX-License-Identifier: MIT */
/* The bitmap directory: each field at its limits, and what is left of one that is damaged. */
#include "block/qcow2/bitmap-directory.h"

#include <string.h>

#define KIB INT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

/* 1 GiB in clusters of 64 KiB; the file is of 16 MiB. A bitmap of 64 KiB takes one cluster. */
static const Qcow2BitmapGeometry geometry = { 16, GIB, 16 * MIB };

static Qcow2BitmapEntry *add(GPtrArray *entries, const char *name, int64_t offset)
{
    Qcow2BitmapEntry *entry = qcow2_bitmap_entry_new(name, 65536);

    entry->table_offset = offset;
    entry->table_entries = 1;
    g_ptr_array_add(entries, entry);
    return entry;
}

static Qcow2BitmapDirectory parse(const uint8_t *buf, size_t bytes, uint64_t said_bytes,
                                  uint32_t said_n)
{
    Qcow2BitmapDirectory directory;

    qcow2_bitmap_directory_init(&directory);
    qcow2_bitmap_directory_parse(buf, bytes, said_bytes, said_n, &geometry, &directory);
    return directory;
}

static Qcow2BitmapEntry *entry_of(const Qcow2BitmapDirectory *directory, guint i)
{
    g_assert_cmpuint(i, <, directory->entries->len);
    return g_ptr_array_index(directory->entries, i);
}

/* The fault of a directory's only entry after `change`; "" for none. Caller frees. */
static char *fault_of(void (*change)(Qcow2BitmapEntry *))
{
    g_autoptr(GPtrArray) entries = qcow2_bitmap_entries_new();
    g_autoptr(GByteArray) bytes = NULL;
    Qcow2BitmapDirectory directory;
    char *ret;

    change(add(entries, "b", 5 << 16));
    bytes = qcow2_bitmap_directory_encode(entries);
    directory = parse(bytes->data, bytes->len, bytes->len, 1);
    g_assert_cmpuint(directory.faults->len, ==, 0);
    ret = g_strdup(entry_of(&directory, 0)->fault ? entry_of(&directory, 0)->fault : "");
    qcow2_bitmap_directory_done(&directory);
    return ret;
}

#define CHANGE(name, statement)                                                                    \
    static void name(Qcow2BitmapEntry *e)                                                          \
    {                                                                                              \
        statement;                                                                                 \
    }

CHANGE(nothing, (void)e)
CHANGE(automatic, e->flags = QCOW2_BITMAP_AUTO)
CHANGE(in_use, e->flags = QCOW2_BITMAP_IN_USE; e->table_entries = 7)
CHANGE(flag_8, e->flags = 8)
CHANGE(flag_high, e->flags = 1u << 31)
CHANGE(type_0, e->type = 0)
CHANGE(type_2, e->type = 2)
CHANGE(granularity_8, e->granularity_bits = 8)
CHANGE(granularity_9, e->granularity_bits = 9; e->table_entries = 4)
CHANGE(granularity_31, e->granularity_bits = 31)
CHANGE(granularity_32, e->granularity_bits = 32)
CHANGE(no_table, e->table_offset = 0)
CHANGE(odd_table, e->table_offset += 512)
CHANGE(last_cluster, e->table_offset = 16 * MIB - 65536)
CHANGE(beyond_the_file, e->table_offset = 16 * MIB)
CHANGE(far_beyond, e->table_offset = INT64_MAX & ~0xffffll)
CHANGE(negative, e->table_offset = INT64_MIN)
CHANGE(no_entries, e->table_entries = 0)
CHANGE(more_entries, e->table_entries = 2)
CHANGE(most_entries, e->table_entries = UINT32_MAX; e->flags = QCOW2_BITMAP_IN_USE)
CHANGE(extra, e->extra_bytes = 5; e->extra = g_malloc0(5))
CHANGE(extra_compatible, e->extra_bytes = 5; e->extra = g_malloc0(5); e->flags = 4)
CHANGE(not_utf8, e->raw_name[0] = 0xff)

static void fields_at_their_limits(void)
{
    static const struct {
        void (*change)(Qcow2BitmapEntry *);
        const char *fault;
    } cases[] = {
        { nothing, "" },
        { automatic, "" },
        { in_use, "" },
        { flag_8, "its flags 0x8 are unknown" },
        { flag_high, "its flags 0x80000000 are unknown" },
        { type_0, "its type 0 is unknown" },
        { type_2, "its type 2 is unknown" },
        { granularity_8, "its granularity of 2^8 bytes is out of bounds" },
        { granularity_9, "" },
        { granularity_31, "" },
        { granularity_32, "its granularity of 2^32 bytes is out of bounds" },
        { no_table, "its table lies at 0x0, which cannot be" },
        { odd_table, "its table lies at 0x50200, which cannot be" },
        { last_cluster, "" },
        { beyond_the_file, "its table lies at 0x1000000, which cannot be" },
        { far_beyond, "its table lies at 0x7fffffffffff0000, which cannot be" },
        { negative, "its table lies at 0x8000000000000000, which cannot be" },
        { no_entries, "its table has 0 entries in place of 1" },
        { more_entries, "its table has 2 entries in place of 1" },
        { most_entries, "its table has 4294967295 entries in place of 1" },
        { extra, "it has extra data of an unknown kind" },
        { extra_compatible, "" },
        { not_utf8, "its name is not valid UTF-8" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *fault = fault_of(cases[i].change);

        g_assert_cmpstr(fault, ==, cases[i].fault);
    }
}

static void sizes(void)
{
    Qcow2BitmapGeometry huge = { 16, INT64_MAX, 0 };
    Qcow2BitmapGeometry two_tib = { 16, INT64_C(2) << 40, 0 };

    g_assert_cmpuint(qcow2_bitmap_data_bytes(1, 16), ==, 1);
    g_assert_cmpuint(qcow2_bitmap_data_bytes(0, 16), ==, 0);
    g_assert_cmpuint(qcow2_bitmap_data_bytes(8 * 65536 + 1, 16), ==, 2);
    g_assert_cmpuint(qcow2_bitmap_table_entries(&geometry, 9), ==, 4);
    g_assert_true(qcow2_bitmap_fits(&huge, 31));
    g_assert_false(qcow2_bitmap_fits(&huge, 30));
    g_assert_true(qcow2_bitmap_fits(&two_tib, 9));
    two_tib.disk_size++;
    g_assert_false(qcow2_bitmap_fits(&two_tib, 9));
    g_assert_true(qcow2_bitmap_fits(&two_tib, 10));
}

static void table_entries(void)
{
    static const struct {
        uint64_t value;
        const char *fault;
    } cases[] = {
        { 0, NULL },
        { 1, NULL },
        { 5 << 16, NULL },
        { 16 * MIB - 65536, NULL },
        { 16 * MIB, "refers to no cluster of the file" },
        { (5 << 16) + 512, "refers to no cluster of the file" },
        { (5 << 16) + 1, "has both a cluster and the all-ones flag" },
        { 2, "has reserved bits set" },
        { 256, "has reserved bits set" },
        { UINT64_C(1) << 56, "has reserved bits set" },
        { UINT64_C(1) << 63, "has reserved bits set" },
        { UINT64_C(1) << 55, "refers to no cluster of the file" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpstr(qcow2_bitmap_table_entry_fault(&geometry, cases[i].value), ==,
                        cases[i].fault);
    }
}

/* --- damage --- */

static const char *const names[] = { "first",
                                     "eight888",
                                     "a name of twenty-one b",
                                     "sixteen_bytes_16",
                                     "0123456789012345678901234567890123456789"
                                     "0123456789",
                                     "last" };
#define N_NAMES G_N_ELEMENTS(names)

/* In a buffer of a cluster, as a reader has it. */
static uint8_t *directory_of_names(size_t *ret_bytes)
{
    g_autoptr(GPtrArray) entries = qcow2_bitmap_entries_new();
    g_autoptr(GByteArray) bytes = NULL;
    uint8_t *buf = g_malloc0(65536);

    for (size_t i = 0; i < N_NAMES; i++) {
        add(entries, names[i], (int64_t)(5 + i) << 16)->flags = i % 2 ? QCOW2_BITMAP_AUTO : 0;
    }
    bytes = qcow2_bitmap_directory_encode(entries);
    memcpy(buf, bytes->data, bytes->len);
    *ret_bytes = bytes->len;
    return buf;
}

static Qcow2BitmapEntry *find(const Qcow2BitmapDirectory *directory, const char *name)
{
    for (guint i = 0; i < directory->entries->len; i++) {
        if (!strcmp(entry_of(directory, i)->name, name)) {
            return entry_of(directory, i);
        }
    }
    return NULL;
}

/* All but `damaged` are there and sound, and nothing but `damaged` is there beside them. */
static void others_are_sound(const Qcow2BitmapDirectory *directory, size_t damaged)
{
    g_assert_cmpuint(directory->entries->len, <=, N_NAMES);
    for (size_t i = 0; i < N_NAMES; i++) {
        Qcow2BitmapEntry *entry = find(directory, names[i]);

        if (i != damaged) {
            g_assert_nonnull(entry);
            g_assert_cmpstr(entry->fault, ==, NULL);
            g_assert_cmpint(entry->table_offset, ==, (int64_t)(5 + i) << 16);
        }
    }
}

static void each_byte_with_each_bit(void)
{
    size_t bytes, end = 0;
    g_autofree uint8_t *buf = directory_of_names(&bytes);
    size_t damaged = 0;

    for (size_t i = 0; i < bytes; i++) {
        if (i == end + ((24 + strlen(names[damaged]) + 7) & ~(size_t)7)) {
            end = i;
            damaged++;
        }
        for (unsigned flip = 0; flip < 256; flip++) {
            Qcow2BitmapDirectory directory;

            buf[i] ^= flip;
            directory = parse(buf, 65536, bytes, N_NAMES);
            others_are_sound(&directory, damaged);
            g_assert_cmpuint(directory.entries->len, ==, N_NAMES);
            qcow2_bitmap_directory_done(&directory);
            buf[i] ^= flip;
        }
    }
    g_assert_cmpuint(damaged, ==, N_NAMES - 1);
}

static void wrong_numbers_in_the_header(void)
{
    static const uint64_t said_bytes[] = {
        0, 1, 8, 31, 32, 40, 72, 4096, 65536, 65544, UINT64_MAX
    };
    static const uint32_t said_n[] = { 0, 1, 5, 7, 65535, 65536, UINT32_MAX };
    size_t bytes;
    g_autofree uint8_t *buf = directory_of_names(&bytes);

    for (size_t i = 0; i < G_N_ELEMENTS(said_bytes); i++) {
        Qcow2BitmapDirectory directory = parse(buf, 65536, said_bytes[i], N_NAMES);

        others_are_sound(&directory, N_NAMES);
        g_assert_cmpuint(directory.entries->len, ==, N_NAMES);
        g_assert_cmpuint(directory.faults->len, >, 0);
        qcow2_bitmap_directory_done(&directory);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(said_n); i++) {
        Qcow2BitmapDirectory directory = parse(buf, 65536, bytes, said_n[i]);

        others_are_sound(&directory, N_NAMES);
        g_assert_cmpuint(directory.entries->len, ==, N_NAMES);
        g_assert_cmpuint(directory.faults->len, ==, 1);
        qcow2_bitmap_directory_done(&directory);
    }
}

static void a_sector_is_lost(void)
{
    size_t bytes;
    g_autofree uint8_t *buf = directory_of_names(&bytes);
    Qcow2BitmapDirectory directory;

    memset(buf + 40, 0, 56); /* the second and the third, in part */
    directory = parse(buf, 65536, bytes, N_NAMES);
    g_assert_cmpstr(find(&directory, "first")->fault, ==, NULL);
    for (size_t i = 3; i < N_NAMES; i++) {
        g_assert_cmpstr(find(&directory, names[i])->fault, ==, NULL);
    }
    g_assert_cmpuint(directory.faults->len, >=, 2);
    qcow2_bitmap_directory_done(&directory);
}

static void random_bytes(void)
{
    GRand *random = g_rand_new_with_seed(4);
    uint8_t buf[2048];

    for (int round = 0; round < 2000; round++) {
        Qcow2BitmapDirectory directory;

        for (size_t i = 0; i < sizeof(buf); i++) {
            buf[i] = g_rand_int_range(random, 0, 4) ? 0 : (uint8_t)g_rand_int(random);
        }
        directory = parse(buf, sizeof(buf), g_rand_int_range(random, 0, 2049),
                          g_rand_int_range(random, 0, 50));
        qcow2_bitmap_directory_done(&directory);
    }
    g_rand_free(random);
}

static void names_are_told_apart(void)
{
    g_autoptr(GPtrArray) entries = qcow2_bitmap_entries_new();
    g_autoptr(GByteArray) bytes = NULL;
    Qcow2BitmapDirectory directory;

    add(entries, "twin", 5 << 16);
    add(entries, "twin", 6 << 16);
    add(entries, "other", 7 << 16);
    bytes = qcow2_bitmap_directory_encode(entries);
    directory = parse(bytes->data, bytes->len, bytes->len, 3);
    g_assert_cmpstr(find(&directory, "twin")->fault, ==, "another bitmap has the same name");
    g_assert_cmpstr(find(&directory, "twin (2)")->fault, ==, "another bitmap has the same name");
    g_assert_cmpstr(find(&directory, "other")->fault, ==, NULL);
    g_assert_cmpuint(directory.faults->len, ==, 1);
    qcow2_bitmap_directory_done(&directory);
}

/* --- references --- */

static uint64_t *table_of(uint64_t value)
{
    uint64_t *table = g_new(uint64_t, 1);

    *table = value;
    return table;
}

static void overlaps_blame_both(void)
{
    static const int64_t taken[] = { 20 << 16 };
    g_autoptr(GPtrArray) entries = qcow2_bitmap_entries_new();
    Qcow2BitmapEntry *a = add(entries, "a", 5 << 16), *b = add(entries, "b", 6 << 16);
    Qcow2BitmapEntry *c = add(entries, "c", 7 << 16), *d = add(entries, "d", 8 << 16);
    Qcow2BitmapEntry *e = add(entries, "e", 9 << 16);

    a->table = table_of(10 << 16);
    b->table = table_of(10 << 16);
    c->table = table_of(5 << 16); /* the table of a */
    d->table = table_of(20 << 16);
    e->table = table_of(21 << 16);
    qcow2_bitmap_find_overlaps(entries, 16, taken, 1);
    g_assert_cmpstr(a->fault, ==, "others refer to its cluster at 0x50000");
    g_assert_cmpstr(b->fault, ==, "others refer to its cluster at 0xa0000");
    g_assert_cmpstr(c->fault, ==, "others refer to its cluster at 0x50000");
    g_assert_cmpstr(d->fault, ==, "others refer to its cluster at 0x140000");
    g_assert_cmpstr(e->fault, ==, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qcow2-bitmap-directory/fields-at-their-limits", fields_at_their_limits);
    g_test_add_func("/qcow2-bitmap-directory/sizes", sizes);
    g_test_add_func("/qcow2-bitmap-directory/table-entries", table_entries);
    g_test_add_func("/qcow2-bitmap-directory/each-byte-with-each-bit", each_byte_with_each_bit);
    g_test_add_func("/qcow2-bitmap-directory/wrong-numbers-in-the-header",
                    wrong_numbers_in_the_header);
    g_test_add_func("/qcow2-bitmap-directory/a-sector-is-lost", a_sector_is_lost);
    g_test_add_func("/qcow2-bitmap-directory/random-bytes", random_bytes);
    g_test_add_func("/qcow2-bitmap-directory/names-are-told-apart", names_are_told_apart);
    g_test_add_func("/qcow2-bitmap-directory/overlaps-blame-both", overlaps_blame_both);
    return g_test_run();
}
