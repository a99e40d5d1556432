/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps in an image on paper: what is stored comes back, and the invariants B1 to B4 of
 * docs/devel/qcow2.md under power failures. A scripted workload fails at each of its steps; random
 * ones fail anywhere. Afterwards each bitmap is as it was before the operation that failed, or
 * as it would be after, or inconsistent; and a bitmap that nothing changed is not inconsistent.
 */
#include "qcow2-paper.h"
#include "sanitized.h"

#include "util/event-loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DISK       (INT64_C(8) << 20) /* 4 clusters of bits at the finest granularity */
#define N_NAMES    4
#define MODEL_BITS (DISK / 512)

/* What a bitmap ought to be, in units of 512 bytes whatever its granularity. */
typedef struct Model {
    bool exists, enabled, lost; /* lost: inconsistent */
    bool changed;               /* since it was stored */
    int shift;
    uint8_t bits[MODEL_BITS];
} Model;

typedef struct World {
    Paper *paper;
    Qcow2 *q;
    GRand *random;
    Model now[N_NAMES], before[N_NAMES];
} World;

static char *name_of(int i)
{
    static char names[N_NAMES][8];

    g_snprintf(names[i], sizeof(names[i]), "b%d", i);
    return names[i];
}

static DirtyBitmap *bitmap_of(World *w, int i)
{
    return bitmap_find(w->q->node->bitmaps, name_of(i));
}

/* --- comparing --- */

/* Where the model is next dirty at or after `offset`, in whole steps of the granularity; or DISK.
 */
static int64_t model_next_dirty(const Model *model, int64_t offset)
{
    const uint8_t *from = model->bits + offset / 512;
    const uint8_t *found = memchr(from, 1, MODEL_BITS - offset / 512);

    return found ? (found - model->bits) * 512 >> model->shift << model->shift : DISK;
}

static bool is_as(DirtyBitmap *bitmap, const Model *model)
{
    int64_t granularity;

    if (!bitmap || !model->exists) {
        return !bitmap == !model->exists;
    }
    if (model->lost || bitmap_is_inconsistent(bitmap)) {
        return model->lost && bitmap_is_inconsistent(bitmap);
    }
    granularity = bitmap_granularity(bitmap);
    if (granularity != INT64_C(1) << model->shift || bitmap_is_enabled(bitmap) != model->enabled) {
        return false;
    }
    g_assert_true(bitmap_load(bitmap, NULL));
    for (int64_t at = 0; at < DISK;) {
        int64_t dirty = model_next_dirty(model, at), end = dirty;

        while (end < DISK && model_next_dirty(model, end) == end) {
            end = MIN(end + granularity, DISK);
        }
        if (bitmap_next_dirty(bitmap, at, DISK) != dirty ||
            (dirty < DISK && bitmap_next_clean(bitmap, dirty, DISK) != end)) {
            return false;
        }
        at = end;
    }
    return true;
}

static void all_is_as_it_should_be(World *w)
{
    for (int i = 0; i < N_NAMES; i++) {
        g_assert_true(is_as(bitmap_of(w, i), &w->now[i]));
    }
}

/* --- operations; each returns whether it succeeded --- */

typedef struct Write {
    World *w;
    int64_t offset, bytes;
    int ret;
} Write;

static void coroutine_fn write_entry(void *opaque)
{
    Write *write = opaque;
    BitmapList *list = write->w->q->node->bitmaps;

    write->ret = bitmap_list_co_before_write(list);
    if (write->ret == 0) {
        bitmap_list_mark(list, write->offset, write->bytes);
    }
}

static void model_set(Model *model, int64_t offset, int64_t bytes)
{
    for (int64_t i = offset / 512; i <= (offset + bytes - 1) / 512; i++) {
        model->bits[i] = 1;
    }
}

static bool do_write(World *w, int64_t offset, int64_t bytes)
{
    Write write = { w, offset, bytes };

    for (int i = 0; i < N_NAMES; i++) {
        if (w->now[i].exists && w->now[i].enabled && !w->now[i].lost) {
            model_set(&w->now[i], offset, bytes);
            w->now[i].changed = true;
        }
    }
    coroutine_run(write_entry, &write);
    return write.ret == 0;
}

static bool do_add(World *w, int i, int shift, bool disabled)
{
    BitmapAddOptions options = { .name = name_of(i),
                                 .granularity = INT64_C(1) << shift,
                                 .persistent = true,
                                 .disabled = disabled };

    if (w->now[i].exists) {
        return true;
    }
    w->now[i] = (Model){ .exists = true, .enabled = !disabled, .changed = true, .shift = shift };
    return bitmap_add(w->q->node->bitmaps, &options, NULL, NULL) != NULL;
}

static bool do_remove(World *w, int i, bool transaction, bool abort)
{
    UndoStack *undo = transaction ? undo_stack_new() : NULL;
    bool ok;

    if (!w->now[i].exists) {
        if (undo) {
            undo_abort(undo);
        }
        return true;
    }
    ok = bitmap_remove(bitmap_of(w, i), undo, NULL);
    if (undo) {
        undo_finish(undo, ok && !abort);
    }
    w->now[i].changed = true;
    if (!abort || !transaction) {
        w->now[i].exists = false;
    }
    return ok;
}

static bool do_clear(World *w, int i)
{
    if (!w->now[i].exists || w->now[i].lost) {
        return true;
    }
    memset(w->now[i].bits, 0, sizeof(w->now[i].bits));
    w->now[i].changed = true;
    return bitmap_clear(bitmap_of(w, i), NULL, NULL);
}

static bool do_fill(World *w, int i)
{
    if (!w->now[i].exists || w->now[i].lost) {
        return true;
    }
    memset(w->now[i].bits, 1, sizeof(w->now[i].bits));
    w->now[i].changed = true;
    if (!bitmap_prepare_change(bitmap_of(w, i), NULL)) {
        return false;
    }
    bitmap_set_range(bitmap_of(w, i), 0, DISK);
    return true;
}

static bool do_enable(World *w, int i, bool enable)
{
    DirtyBitmap *bitmap = bitmap_of(w, i);

    if (!w->now[i].exists || w->now[i].lost) {
        return true;
    }
    w->now[i].changed |= w->now[i].enabled != enable;
    w->now[i].enabled = enable;
    return enable ? bitmap_enable(bitmap, NULL, NULL) : bitmap_disable(bitmap, NULL, NULL);
}

static bool do_store(World *w)
{
    bool ok = qcow2_bitmaps_store(w->q, NULL);

    for (int i = 0; ok && i < N_NAMES; i++) {
        w->now[i].changed = false;
    }
    return ok;
}

static bool do_reopen(World *w)
{
    if (!do_store(w)) { /* which closing does, with a warning when it fails */
        return false;
    }
    paper_close(w->q);
    w->q = paper_open(w->paper, DISK, false);
    return true;
}

static bool do_read_only_and_back(World *w)
{
    UndoStack *undo = undo_stack_new();
    bool ok = qcow2_bitmaps_reopen_ro(w->q, undo, NULL);

    undo_finish(undo, ok);
    if (!ok) {
        return false;
    }
    for (int i = 0; i < N_NAMES; i++) {
        w->now[i].changed = false;
    }
    if (g_rand_boolean(w->random)) {
        do_enable(w, (int)g_rand_int_range(w->random, 0, N_NAMES), g_rand_boolean(w->random));
    }
    qcow2_bitmaps_reopen_rw(w->q);
    return do_write(w, 0, 1); /* until which what was done meanwhile is not known to the file */
}

static int random_shift(World *w)
{
    static const int shifts[] = { 9, 10, 12, 16 };

    return shifts[g_rand_int_range(w->random, 0, G_N_ELEMENTS(shifts))];
}

static bool do_something(World *w)
{
    int i = g_rand_int_range(w->random, 0, N_NAMES);
    int64_t offset = g_rand_int_range(w->random, 0, DISK / 512) * INT64_C(512);
    int64_t most = g_rand_int_range(w->random, 0, 4) ? 65536 : DISK;

    switch (g_rand_int_range(w->random, 0, 14)) {
    case 0:
    case 1:
    case 2:
        return do_add(w, i, random_shift(w), g_rand_boolean(w->random));
    case 3:
        return do_remove(w, i, g_rand_boolean(w->random), g_rand_boolean(w->random));
    case 4:
        return do_clear(w, i);
    case 5:
        return do_fill(w, i);
    case 6:
    case 7:
        return do_enable(w, i, g_rand_boolean(w->random));
    case 8:
        return do_store(w);
    case 9:
        return do_reopen(w);
    case 10:
        return do_read_only_and_back(w);
    default:
        return do_write(w, offset,
                        g_rand_int_range(w->random, 1, (int)MIN(most, DISK - offset) + 1));
    }
}

/* --- after a failure --- */

/* Of a bitmap that is not as now nor as before, it must be said that it is lost; and only one that
 * changed since it was stored may be. */
static void judge(World *w, int i)
{
    DirtyBitmap *bitmap = bitmap_of(w, i);
    Model *now = &w->now[i], *before = &w->before[i];

    if (bitmap && bitmap_is_inconsistent(bitmap)) {
        g_assert_true(now->changed || now->lost || before->changed);
        now->lost = now->exists = true;
        now->enabled = false;
    } else if (!bitmap) { /* removed, or never stored */
        g_assert_true(!now->exists || !before->exists || now->changed);
        now->exists = false;
    } else if (!is_as(bitmap, now)) {
        g_assert_true(is_as(bitmap, before));
        *now = *before;
    }
    now->changed = false;
}

static void power_fails(World *w)
{
    static const double chances[] = { 0, 1, 0.5, 0.1, 0.9 };

    paper_drop(w->q);
    paper_restart(w->paper, w->random,
                  chances[g_rand_int_range(w->random, 0, G_N_ELEMENTS(chances))]);
    w->q = paper_open(w->paper, DISK, false);
    for (int i = 0; i < N_NAMES; i++) {
        judge(w, i);
    }
}

static void world_init(World *w, GRand *random)
{
    memset(w, 0, sizeof(*w));
    w->random = random;
    w->paper = paper_new(DISK);
    w->q = paper_open(w->paper, DISK, false);
}

static void world_done(World *w)
{
    paper_drop(w->q);
    paper_free(w->paper);
}

static uint32_t seed(void)
{
    static uint32_t value;
    const char *given = g_getenv("MERINO_TEST_SEED");

    if (!value) {
        value = given ? (uint32_t)strtoul(given, NULL, 0) : g_random_int() | 1;
        g_test_message("MERINO_TEST_SEED=%u", value);
    }
    return value;
}

static void quiet(void)
{
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL); /* warnings are expected */
}

static void no_log(const char *domain, GLogLevelFlags level, const char *text, void *opaque)
{
}

/* --- the workloads --- */

static bool script(World *w, int n)
{
    switch (n) {
    case 0:
        return do_add(w, 0, 9, false) && do_add(w, 1, 9, true);
    case 1:
        return do_write(w, 4096, 512);
    case 2:
        return do_fill(w, 1);
    case 3:
        return do_reopen(w);
    case 4:
        return do_write(w, 6 << 20, 65536);
    case 5:
        return do_store(w);
    case 6:
        return do_add(w, 2, 10, false);
    case 7:
        return do_write(w, 0, 1) && do_enable(w, 0, false);
    case 8:
        return do_reopen(w);
    case 9:
        return do_remove(w, 1, true, true);
    case 10:
        return do_remove(w, 1, true, false);
    case 11:
        return do_clear(w, 2);
    case 12:
        return do_reopen(w);
    case 13:
        return do_write(w, 5 << 20, 1 << 20);
    case 14:
        return do_read_only_and_back(w);
    case 15:
        return do_remove(w, 0, false, false) && do_remove(w, 2, false, false);
    default:
        return do_reopen(w);
    }
}
#define SCRIPT 17

/* Runs with the power failing after so many steps; returns whether it did. */
static bool run_script(int steps, GRand *random)
{
    World w;
    bool ok = true;

    world_init(&w, random);
    w.paper->steps_left = steps;
    for (int i = 0; i < SCRIPT && ok; i++) {
        memcpy(w.before, w.now, sizeof(w.now));
        ok = script(&w, i) && !w.paper->dead;
        if (ok) {
            all_is_as_it_should_be(&w);
        }
    }
    if (ok) {
        paper_check(w.q, true);
    } else {
        power_fails(&w);
        all_is_as_it_should_be(&w);
    }
    world_done(&w);
    return !ok;
}

static void power_fails_at_each_step(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(seed());
    int steps = 0;

    while (run_script(steps, random)) {
        steps += SANITIZED ? 3 : 1;
    }
    g_assert_cmpint(steps, >, 50);
}

static void random_world(GRand *random)
{
    World w;

    world_init(&w, random);
    for (int round = 0; round < 12; round++) {
        bool ok = true;

        w.paper->steps_left = g_rand_int_range(random, 0, 3) ? g_rand_int_range(random, 0, 80) : -1;
        for (int i = 0; i < 25 && ok; i++) {
            memcpy(w.before, w.now, sizeof(w.now));
            ok = do_something(&w) && !w.paper->dead;
        }
        if (ok) {
            all_is_as_it_should_be(&w);
        } else {
            power_fails(&w);
        }
    }
    world_done(&w);
}

static void random_workloads(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(seed());

    for (int i = 0; i < 12; i++) {
        random_world(random);
    }
}

/* --- what costs nothing --- */

static void what_did_not_change_is_not_written(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(1);
    World w;
    int steps;

    world_init(&w, random);
    g_assert_true(do_add(&w, 0, 9, false) && do_add(&w, 1, 9, true) && do_fill(&w, 1));
    g_assert_true(do_write(&w, 0, 512) && do_write(&w, 6 << 20, 512) && do_reopen(&w));
    steps = w.paper->steps;
    w.paper->reads = 0;
    g_assert_true(do_reopen(&w));
    g_assert_cmpint(w.paper->steps, ==, steps); /* nothing is marked, nothing is written */
    g_assert_cmpint(w.paper->reads, ==, 3);     /* the directory, two tables */
    g_assert_true(do_write(&w, 512, 512));
    g_assert_cmpint(w.paper->steps, ==, steps + 2); /* the mark, and its sync */
    g_assert_true(do_write(&w, 1024, 512));
    g_assert_cmpint(w.paper->steps, ==, steps + 2);
    g_assert_true(do_store(&w));
    g_assert_cmpint(w.paper->steps, ==, steps + 6); /* bits, sync, flags, sync */
    g_assert_cmpint(w.paper->reads, ==, 4);         /* the bits that were added to */
    all_is_as_it_should_be(&w);
    world_done(&w);
}

static void marks_that_cannot_be_written_stop_writes(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(1);
    World w;

    world_init(&w, random);
    g_assert_true(do_add(&w, 0, 9, false) && do_reopen(&w));
    memcpy(w.before, w.now, sizeof(w.now));
    w.paper->steps_left = 0;
    g_assert_false(do_write(&w, 0, 512));
    memcpy(w.now, w.before, sizeof(w.now));
    w.paper->dead = false;
    w.paper->steps_left = -1;
    all_is_as_it_should_be(&w);
    g_assert_true(do_write(&w, 512, 512) && do_reopen(&w));
    all_is_as_it_should_be(&w);
    world_done(&w);
}

/* --- damage --- */

/* Of two that claim the same cluster or name nobody can tell whose it is. */
static bool is_disputed(DirtyBitmap *bitmap)
{
    const char *reason = bitmap ? bitmap_inconsistent_reason(bitmap) : NULL;

    return reason && (strstr(reason, "others refer to its cluster") ||
                      strstr(reason, "another bitmap has the same name"));
}

/* Two bitmaps whose directory or tables have one byte changed: the disk opens, the sound one is as
 * it was, and both can be removed. */
static void try_damaged(World *w, int64_t at, uint8_t flip, int damaged)
{
    g_autofree uint8_t *file = g_memdup2(w->paper->data, PAPER_CLUSTERS << PAPER_CLUSTER_BITS);
    DirtyBitmap *bitmap;

    w->paper->data[at] ^= flip;
    w->q = paper_open(w->paper, DISK, false);
    for (int i = 0; i < 2; i++) {
        g_assert_true(i == damaged || is_as(bitmap_of(w, i), &w->now[i]) ||
                      is_disputed(bitmap_of(w, i)));
    }
    g_assert_true(do_write(w, 1 << 20, 512)); /* which marks, or mends, as need be */
    g_assert_true(qcow2_bitmaps_store(w->q, NULL));
    while ((bitmap = bitmap_list_next(w->q->node->bitmaps, NULL))) {
        g_assert_true(bitmap_remove(bitmap, NULL, NULL));
    }
    g_assert_false(w->q->header.has_bitmaps);
    paper_drop(w->q);
    memcpy(w->paper->data, file, PAPER_CLUSTERS << PAPER_CLUSTER_BITS);
}

static void any_byte_may_be_wrong(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(1);
    GLogFunc old = g_log_set_default_handler(no_log, NULL);
    uint8_t refcounts[PAPER_CLUSTERS];
    Model now[N_NAMES];
    int64_t directory, table[2];
    World w;

    world_init(&w, random);
    g_assert_true(do_add(&w, 0, 9, false) && do_add(&w, 1, 9, false));
    g_assert_true(do_write(&w, 4096, 512) && do_write(&w, 5 << 20, 1 << 20) && do_reopen(&w));
    directory = w.q->header.bitmap_dir_offset;
    for (int i = 0; i < 2; i++) {
        const Qcow2DiskBitmap *entry = (const void *)(w.paper->data + directory + 32 * (i));

        table[i] = (int64_t)GUINT64_FROM_BE(entry->table_offset);
    }
    paper_drop(w.q);
    memcpy(refcounts, w.paper->refcounts, sizeof(refcounts));
    memcpy(now, w.now, sizeof(now));
    for (int i = 0; i < 2 * (32 + 32); i++) {
        int damaged = i / 32 % 2;
        int64_t at = i < 64 ? directory + i : table[damaged] + i % 32;
        /* Entries are listed newest first, so the first in the file is b1. */
        int which = 1 - damaged;

        for (int flip = 1; flip < 256; flip += i < 64 ? 13 : 41) {
            try_damaged(&w, at, (uint8_t)flip, which);
            memcpy(w.paper->refcounts, refcounts, sizeof(refcounts));
            memcpy(w.now, now, sizeof(now));
        }
    }
    w.q = paper_open(w.paper, DISK, false);
    all_is_as_it_should_be(&w);
    world_done(&w);
    g_log_set_default_handler(old, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_loop_main();
    quiet();
    g_test_add_func("/qcow2-bitmaps/what-did-not-change-is-not-written",
                    what_did_not_change_is_not_written);
    g_test_add_func("/qcow2-bitmaps/marks-that-cannot-be-written-stop-writes",
                    marks_that_cannot_be_written_stop_writes);
    g_test_add_func("/qcow2-bitmaps/power-fails-at-each-step", power_fails_at_each_step);
    g_test_add_func("/qcow2-bitmaps/random-workloads", random_workloads);
    g_test_add_func("/qcow2-bitmaps/any-byte-may-be-wrong", any_byte_may_be_wrong);
    return g_test_run();
}
