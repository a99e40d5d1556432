/* SPDX-License-Identifier: MIT */
/* Every verb in every state is allowed, or refused in QEMU's words. */
#include "block/dirty-bitmap.h"

#define DISK INT64_C(1048576)

enum {
    REMOVE,
    CLEAR,
    ENABLE,
    DISABLE,
    MERGE_INTO,
    MERGE_FROM,
    RESIZE,
    VERBS
};

typedef struct Flags {
    bool enabled, read_only, inconsistent, busy, removed;
} Flags;

/* One letter a verb, in the order above: allowed (-), read-only (r), inconsistent (i), busy (b). */
static char expected(const Flags *flags, int verb)
{
    static const char *const table[2][2] = {
        { "-------", "-iiiiii" }, /* writable: consistent, inconsistent */
        { "rr--r-r", "rriirir" }, /* read-only */
    };

    if (flags->busy || flags->removed) {
        return 'b';
    }
    return table[flags->read_only][flags->inconsistent][verb];
}

typedef struct Disk {
    BitmapList *list;
    DirtyBitmap *bitmap; /* the one in question */
    DirtyBitmap *other;
    UndoStack *removal; /* or NULL */
} Disk;

static DirtyBitmap *add(BitmapList *list, const char *name, bool disabled)
{
    BitmapAddOptions options = { .name = name, .granularity = 4096, .disabled = disabled };
    DirtyBitmap *bitmap = bitmap_add(list, &options, NULL, NULL);

    g_assert_nonnull(bitmap);
    return bitmap;
}

static void disk_init(Disk *disk, const Flags *flags)
{
    disk->list = bitmap_list_new("disk0", DISK);
    disk->other = add(disk->list, "other", true);
    disk->bitmap = add(disk->list, "b", !flags->enabled);
    disk->removal = NULL;
    bitmap_set_range(disk->other, 8192, 1);
    bitmap_set_range(disk->bitmap, 0, 1);
    if (flags->removed) {
        disk->removal = undo_stack_new();
        g_assert_true(bitmap_remove(disk->bitmap, disk->removal, NULL));
    }
    if (flags->inconsistent) {
        bitmap_set_inconsistent(disk->bitmap, "for the test");
    }
    if (flags->read_only) {
        bitmap_set_read_only(disk->bitmap, true);
    }
    if (flags->busy) {
        bitmap_hold(disk->bitmap);
    }
}

static void disk_done(Disk *disk)
{
    if (disk->removal) {
        undo_abort(disk->removal);
    }
    bitmap_list_free(disk->list);
}

static bool do_verb(Disk *disk, int verb, UndoStack *undo, GError **error)
{
    switch (verb) {
    case REMOVE:
        return bitmap_remove(disk->bitmap, undo, error);
    case CLEAR:
        return bitmap_clear(disk->bitmap, undo, error);
    case ENABLE:
        return bitmap_enable(disk->bitmap, undo, error);
    case DISABLE:
        return bitmap_disable(disk->bitmap, undo, error);
    case MERGE_INTO:
        return bitmap_merge(disk->bitmap, &disk->other, 1, undo, error);
    case MERGE_FROM:
        return bitmap_merge(disk->other, &disk->bitmap, 1, undo, error);
    default:
        return bitmap_list_check_resize(disk->list, DISK * 2, error);
    }
}

static const char *words_of(char letter)
{
    switch (letter) {
    case 'r':
        return "Bitmap 'b' is readonly and cannot be modified";
    case 'i':
        return "Bitmap 'b' is inconsistent and cannot be used";
    default:
        return "Bitmap 'b' is currently in use by another operation and cannot be used";
    }
}

static void assert_as_begun(Disk *disk, const Flags *flags)
{
    g_assert_true(bitmap_find(disk->list, "b") == disk->bitmap);
    g_assert_cmpint(bitmap_is_enabled(disk->bitmap), ==, flags->enabled && !flags->inconsistent);
    g_assert_cmpint(bitmap_is_busy(disk->bitmap), ==, flags->busy || flags->removed);
    g_assert_cmpint(bitmap_is_read_only(disk->bitmap), ==, flags->read_only);
    g_assert_cmpint(bitmap_is_inconsistent(disk->bitmap), ==, flags->inconsistent);
    if (!flags->inconsistent) {
        g_assert_cmpint(bitmap_dirty_bytes(disk->bitmap), ==, 4096);
    }
    g_assert_cmpint(bitmap_dirty_bytes(disk->other), ==, 4096);
}

static void assert_done(Disk *disk, const Flags *flags, int verb)
{
    switch (verb) {
    case REMOVE:
        g_assert_null(bitmap_find(disk->list, "b"));
        break;
    case CLEAR:
        g_assert_cmpint(bitmap_dirty_bytes(disk->bitmap), ==, 0);
        break;
    case ENABLE:
    case DISABLE:
        g_assert_cmpint(bitmap_is_enabled(disk->bitmap), ==, verb == ENABLE);
        break;
    case MERGE_INTO:
        g_assert_cmpint(bitmap_dirty_bytes(disk->bitmap), ==, 8192);
        break;
    case MERGE_FROM:
        g_assert_cmpint(bitmap_dirty_bytes(disk->other), ==, 8192);
        break;
    default:
        break;
    }
}

static void try_cell(const Flags *flags, int verb)
{
    g_autoptr(GError) error = NULL;
    char letter = expected(flags, verb);
    UndoStack *undo = undo_stack_new();
    Disk disk;

    disk_init(&disk, flags);
    assert_as_begun(&disk, flags);
    g_assert_cmpint(do_verb(&disk, verb, undo, &error), ==, letter == '-');
    if (letter != '-') {
        g_assert_cmpstr(error->message, ==, words_of(letter));
    }
    undo_abort(undo);
    assert_as_begun(&disk, flags);
    if (letter == '-') {
        g_assert_true(do_verb(&disk, verb, NULL, NULL));
        assert_done(&disk, flags, verb);
    }
    disk_done(&disk);
}

static void every_verb_in_every_state(void)
{
    for (unsigned bits = 0; bits < 32; bits++) {
        Flags flags = { bits & 1, bits & 2, bits & 4, bits & 8, bits & 16 };

        for (int verb = 0; verb < VERBS; verb++) {
            try_cell(&flags, verb);
        }
    }
}

/* What users of a bitmap ask of it: the same weights and words. */
static void needs(void)
{
    for (unsigned bits = 0; bits < 32; bits++) {
        Flags flags = { bits & 1, bits & 2, bits & 4, bits & 8, bits & 16 };
        Disk disk;

        disk_init(&disk, &flags);
        for (unsigned need = 0; need <= BITMAP_NEED_ALL; need++) {
            g_autoptr(GError) error = NULL;
            char letter = '-';

            if ((need & BITMAP_NEED_NOT_BUSY) && (flags.busy || flags.removed)) {
                letter = 'b';
            } else if ((need & BITMAP_NEED_WRITABLE) && flags.read_only) {
                letter = 'r';
            } else if ((need & BITMAP_NEED_CONSISTENT) && flags.inconsistent) {
                letter = 'i';
            }
            g_assert_cmpint(bitmap_check(disk.bitmap, need, &error), ==, letter == '-');
            if (letter != '-') {
                g_assert_cmpstr(error->message, ==, words_of(letter));
            }
        }
        disk_done(&disk);
    }
}

static void holders_are_counted(void)
{
    Flags flags = { false };
    Disk disk;

    disk_init(&disk, &flags);
    bitmap_hold(disk.bitmap);
    bitmap_hold(disk.bitmap);
    bitmap_release(disk.bitmap);
    g_assert_true(bitmap_is_busy(disk.bitmap));
    bitmap_release(disk.bitmap);
    g_assert_false(bitmap_is_busy(disk.bitmap));
    disk_done(&disk);
}

/* Only an enabled bitmap that may change takes in writes. */
static void who_records(void)
{
    for (unsigned bits = 0; bits < 16; bits++) {
        Flags flags = { bits & 1, bits & 2, bits & 4, bits & 8, false };
        bool records = flags.enabled && !flags.read_only;
        Disk disk;

        disk_init(&disk, &flags);
        bitmap_list_mark(disk.list, DISK - 1, 1);
        if (!flags.inconsistent) {
            g_assert_cmpint(bitmap_dirty_bytes(disk.bitmap), ==, records ? 8192 : 4096);
            g_assert_cmpint(bitmap_get(disk.bitmap, DISK - 1), ==, records);
        }
        g_assert_cmpint(bitmap_dirty_bytes(disk.other), ==, 4096);
        disk_done(&disk);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bitmap-states/every-verb-in-every-state", every_verb_in_every_state);
    g_test_add_func("/bitmap-states/needs", needs);
    g_test_add_func("/bitmap-states/holders-are-counted", holders_are_counted);
    g_test_add_func("/bitmap-states/who-records", who_records);
    return g_test_run();
}
