/* SPDX-License-Identifier: MIT */
/*
 * What the bitmaps in an image may say after a loss of power.
 *
 * Everything that is done to a bitmap, or marks it, is remembered with the ticks of its beginning
 * and end. Played again up to the loss, it tells for each sector whether the bitmap must, may or
 * must not know it as dirty: what is under way, or failed, may have happened or not. A bitmap that
 * is not inconsistent has to agree, with no bit missing and none too many (B1 ...); one that was
 * stored is there until it is removed, and not inconsistent until it changes.
 */
#ifndef MERINO_TESTS_CRASH_BITMAPS_H
#define MERINO_TESTS_CRASH_BITMAPS_H

#include "block/dirty-bitmap.h"
#include "crash-disk.h"

typedef enum BitmapStep {
    BITMAP_ADD,
    BITMAP_REMOVE,
    BITMAP_ENABLE,
    BITMAP_DISABLE,
    BITMAP_CLEAR,
    BITMAP_MERGE,
    BITMAP_STORE, /* closing as well */
    BITMAP_WRITE,
    BITMAP_RESIZE,
    BITMAP_GOTO, /* a snapshot: may change anything, and the size */
} BitmapStep;

typedef struct CrashBitmaps CrashBitmaps;

/* Of a disk that has `max` bytes at most. */
CrashBitmaps *crash_bitmaps_new(int64_t max);
void crash_bitmaps_free(CrashBitmaps *bitmaps);

/* A step begins; returns what its end is told with. The name is that of one bitmap; WRITE, RESIZE,
 * STORE and GOTO are for all, with NULL. */
typedef struct BitmapEvent BitmapEvent;
BitmapEvent *crash_bitmaps_begin(CrashBitmaps *bitmaps, BitmapStep step, const char *name);
BitmapEvent *crash_bitmaps_begin_merge(CrashBitmaps *bitmaps, const char *target,
                                       const char *source);
/* More about it: */
void crash_bitmap_added(BitmapEvent *event, int64_t granularity, bool disabled);
void crash_bitmap_range(BitmapEvent *event, int64_t offset, int64_t bytes); /* or 0 and the size */
/* GOTO: these sectors will differ (taken over); the disk had and will have so many bytes. */
void crash_bitmap_goto(BitmapEvent *event, uint8_t *differ, int64_t old, int64_t size);
void crash_bitmaps_end(BitmapEvent *event, bool ok);

/* Grows with what the bitmaps must have become. */
uint64_t crash_bitmaps_demands(const CrashBitmaps *bitmaps, uint64_t cut);
/* Whether these may be the image's when power is lost at `cut`; prints what is wrong. Counts the
 * bitmaps that were not inconsistent in `*ret_sound`. */
bool crash_bitmaps_allow(CrashBitmaps *bitmaps, uint64_t cut, BitmapList *list, int *ret_sound);

#endif
