/* SPDX-License-Identifier: MIT */
/*
 * A bitmap's properties: what it is called, in which state it is, who uses it, where it is stored.
 */
#include "bitmap-internal.h"
#include "util/error.h"

const char *bitmap_name(const DirtyBitmap *bitmap)
{
    return bitmap->name;
}

BitmapList *bitmap_owner(const DirtyBitmap *bitmap)
{
    return bitmap->list;
}

int64_t bitmap_granularity(const DirtyBitmap *bitmap)
{
    return INT64_C(1) << bitmap->shift;
}

int64_t bitmap_size(const DirtyBitmap *bitmap)
{
    return bitmap->list->size;
}

bool bitmap_is_enabled(const DirtyBitmap *bitmap)
{
    return bitmap->state.enabled;
}

bool bitmap_is_busy(const DirtyBitmap *bitmap)
{
    return bitmap->state.holders || bitmap->state.removed;
}

bool bitmap_is_read_only(const DirtyBitmap *bitmap)
{
    return bitmap->state.read_only;
}

bool bitmap_is_persistent(const DirtyBitmap *bitmap)
{
    return bitmap->persistent;
}

bool bitmap_is_inconsistent(const DirtyBitmap *bitmap)
{
    return bitmap->state.inconsistent;
}

const char *bitmap_inconsistent_reason(const DirtyBitmap *bitmap)
{
    return bitmap->reason;
}

void bitmap_hold(DirtyBitmap *bitmap)
{
    bitmap->state.holders++;
}

void bitmap_release(DirtyBitmap *bitmap)
{
    g_assert(bitmap->state.holders > 0);
    bitmap->state.holders--;
}

void bitmap_set_read_only(DirtyBitmap *bitmap, bool read_only)
{
    g_autoptr(GError) error = NULL;

    bitmap->state.read_only = read_only;
    if (!list_update_recording(bitmap->list, NULL, &error)) {
        g_error("%s", error->message); /* out of memory: as everywhere, the end */
    }
}

void bitmap_set_persistent(DirtyBitmap *bitmap, bool persistent)
{
    bitmap->persistent = persistent;
}

/* It may happen while writes are in flight, so the set of recording bitmaps stays as it is until
 * it changes next; what is folded into the bitmap meanwhile nobody sees. */
void bitmap_set_inconsistent(DirtyBitmap *bitmap, const char *reason)
{
    bitmap->state.inconsistent = true;
    bitmap->state.enabled = false;
    bitmap->deferred = false;
    if (!atomic_load(&bitmap->marked)) {
        bitmap_list_expect_write(bitmap->list);
    }
    g_free(bitmap->reason);
    bitmap->reason = g_strdup(reason);
}
