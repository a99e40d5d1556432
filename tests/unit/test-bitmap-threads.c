/* SPDX-License-Identifier: MIT */
/*
 * Writers on several threads while bitmaps are switched, read and folded.
 *
 * Each writer notes in which interval it wrote which block; the control thread notes for each
 * interval which bitmaps were enabled in it. An interval ends where the control thread has drained
 * the disk, which a read-write lock stands for here. In the end each bitmap is dirty in
 * exactly the blocks that were written while it was enabled.
 */
#include "block/dirty-bitmap.h"

#include <stdatomic.h>

enum {
    WRITERS = 3,
    BITMAPS = 4,
    INTERVALS = 150,
    WRITES_EACH = 400, /* of a writer, in an interval, at least before the control thread goes on */
    BLOCK = 4096,
    BLOCKS = 80000, /* several pages of the bitmap */
};

typedef struct Write {
    int interval;
    int block;
} Write;

typedef struct Disk {
    BitmapList *list;
    DirtyBitmap *watched; /* enabled and held all the time */
    DirtyBitmap *bitmaps[BITMAPS];
    GMutex door;        /* held by whoever is about to enter */
    GRWLock gate;       /* writers inside, or the control thread alone */
    int interval;       /* changes while drained; in interval 0 only `watched` is enabled */
    atomic_int written; /* in this interval */
    atomic_bool finished;
    bool enabled[INTERVALS][BITMAPS];
    GArray *writes[WRITERS]; /* of Write */
} Disk;

typedef struct Writer {
    Disk *disk;
    int number;
    guint32 seed;
} Writer;

static void drain(Disk *disk)
{
    g_mutex_lock(&disk->door);
    g_rw_lock_writer_lock(&disk->gate);
}

static void undrain(Disk *disk)
{
    g_rw_lock_writer_unlock(&disk->gate);
    g_mutex_unlock(&disk->door);
}

static void write_block(Disk *disk, GArray *writes, int block, bool look)
{
    Write write = { .block = block };

    g_mutex_lock(&disk->door);
    g_rw_lock_reader_lock(&disk->gate);
    g_mutex_unlock(&disk->door);
    bitmap_list_mark(disk->list, (int64_t)block * BLOCK, BLOCK);
    write.interval = disk->interval;
    g_array_append_val(writes, write);
    if (look) {
        g_assert_true(bitmap_get(disk->watched, (int64_t)block * BLOCK));
    }
    g_rw_lock_reader_unlock(&disk->gate);
    atomic_fetch_add(&disk->written, 1);
}

static void *writer_thread(void *opaque)
{
    Writer *writer = opaque;
    Disk *disk = writer->disk;
    GRand *rand = g_rand_new_with_seed(writer->seed);

    while (!atomic_load(&disk->finished)) {
        write_block(disk, disk->writes[writer->number], g_rand_int_range(rand, 0, BLOCKS),
                    g_rand_int_range(rand, 0, 16) == 0);
    }
    g_rand_free(rand);
    return NULL;
}

/* An export's look at the bitmap it holds, which folds into all. */
static void *reader_thread(void *opaque)
{
    Disk *disk = opaque;
    int64_t before = 0;

    while (!atomic_load(&disk->finished)) {
        int64_t pos = 0, area, bytes, dirty = 0;

        while (bitmap_next_dirty_area(disk->watched, pos, INT64_MAX, 1 << 24, &area, &bytes)) {
            dirty += bytes;
            pos = area + bytes;
        }
        g_assert_cmpint(dirty, >=, before);
        before = dirty;
    }
    return NULL;
}

/* Verbs that leave the bits of enabled bitmaps as they are, some of them undone. */
static void switch_bitmaps(Disk *disk, GRand *rand, bool *enabled)
{
    UndoStack *undo = undo_stack_new();
    bool commit = g_rand_boolean(rand);

    for (int i = 0; i < BITMAPS; i++) {
        DirtyBitmap *other = disk->bitmaps[(i + 1) % BITMAPS];
        bool on = g_rand_boolean(rand);

        if (g_rand_int_range(rand, 0, 4) == 0) {
            g_assert_true(bitmap_clear(disk->bitmaps[i], undo, NULL));
            g_assert_true(bitmap_merge(disk->bitmaps[i], &other, 1, undo, NULL));
            undo_abort(undo);
            undo = undo_stack_new();
        }
        g_assert_true((on ? bitmap_enable : bitmap_disable)(disk->bitmaps[i], undo, NULL));
    }
    undo_finish(undo, commit);
    for (int i = 0; i < BITMAPS; i++) {
        enabled[i] = bitmap_is_enabled(disk->bitmaps[i]);
    }
}

static void control(Disk *disk, GRand *rand)
{
    BitmapAddOptions options = { .name = "passing", .granularity = 512 };

    for (int interval = 1; interval < INTERVALS; interval++) {
        DirtyBitmap *passing = NULL;

        drain(disk);
        disk->interval = interval;
        atomic_store(&disk->written, 0);
        switch_bitmaps(disk, rand, disk->enabled[interval]);
        if (interval % 3 == 0) {
            passing = bitmap_add(disk->list, &options, NULL, NULL);
        }
        undrain(disk);

        while (atomic_load(&disk->written) < WRITERS * WRITES_EACH) {
            bitmap_dirty_bytes(disk->bitmaps[interval % BITMAPS]); /* folds meanwhile */
        }
        if (passing) {
            drain(disk);
            g_assert_true(bitmap_remove(passing, NULL, NULL));
            undrain(disk);
        }
    }
}

static void check(Disk *disk, int i)
{
    g_autofree bool *expected = g_new0(bool, BLOCKS);

    for (int w = 0; w < WRITERS; w++) {
        for (guint k = 0; k < disk->writes[w]->len; k++) {
            Write write = g_array_index(disk->writes[w], Write, k);

            expected[write.block] |= i < 0 || disk->enabled[write.interval][i];
        }
    }
    for (int block = 0; block < BLOCKS; block++) {
        DirtyBitmap *bitmap = i < 0 ? disk->watched : disk->bitmaps[i];
        int64_t granularity = bitmap_granularity(bitmap);
        int64_t first = (int64_t)block * BLOCK / granularity * granularity / BLOCK;
        int64_t last = MIN(BLOCKS, first + MAX(1, granularity / BLOCK));
        bool dirty = false;

        for (int64_t k = first; k < last; k++) {
            dirty |= expected[k];
        }
        g_assert_cmpint(bitmap_get(bitmap, (int64_t)block * BLOCK), ==, dirty);
    }
}

static void disk_init(Disk *disk)
{
    static const int64_t granularities[BITMAPS] = { 4096, 16384, 1024, 65536 };

    disk->list = bitmap_list_new("disk0", (int64_t)BLOCKS * BLOCK);
    g_mutex_init(&disk->door);
    g_rw_lock_init(&disk->gate);
    disk->watched = bitmap_add(disk->list, &(BitmapAddOptions){ .granularity = 8192 }, NULL, NULL);
    bitmap_hold(disk->watched);
    for (int i = 0; i < BITMAPS; i++) {
        BitmapAddOptions options = { .granularity = granularities[i], .disabled = true };

        disk->bitmaps[i] = bitmap_add(disk->list, &options, NULL, NULL);
    }
    for (int w = 0; w < WRITERS; w++) {
        disk->writes[w] = g_array_new(FALSE, FALSE, sizeof(Write));
    }
}

static void disk_free(Disk *disk)
{
    for (int w = 0; w < WRITERS; w++) {
        g_array_free(disk->writes[w], TRUE);
    }
    bitmap_list_free(disk->list);
    g_rw_lock_clear(&disk->gate);
    g_mutex_clear(&disk->door);
    g_free(disk);
}

static void each_write_is_in_its_bitmaps(void)
{
    const char *given = g_getenv("MERINO_TEST_SEED");
    guint32 seed = given ? g_ascii_strtoull(given, NULL, 0) : g_random_int();
    GRand *rand = g_rand_new_with_seed(seed);
    Disk *disk = g_new0(Disk, 1);
    GThread *threads[WRITERS + 1];
    Writer writers[WRITERS];

    g_test_message("MERINO_TEST_SEED=%u", seed);
    disk_init(disk);
    for (int w = 0; w < WRITERS; w++) {
        writers[w] = (Writer){ disk, w, g_rand_int(rand) };
        threads[w] = g_thread_new("writer", writer_thread, &writers[w]);
    }
    threads[WRITERS] = g_thread_new("reader", reader_thread, disk);
    control(disk, rand);
    atomic_store(&disk->finished, true);
    for (int t = 0; t <= WRITERS; t++) {
        g_thread_join(threads[t]);
    }
    for (int i = -1; i < BITMAPS; i++) {
        check(disk, i);
    }
    disk_free(disk);
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bitmap-threads/each-write-is-in-its-bitmaps", each_write_is_in_its_bitmaps);
    return g_test_run();
}
