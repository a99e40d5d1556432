/* SPDX-License-Identifier: MIT */
/*
 * Disks that remember everything that was done to them, so that the disks after a loss of power can
 * be had for any moment.
 *
 * They take the place of the driver `null-co`, which is which by the node's name: 'disk' holds the
 * image, 'data' its external data file, and 'base', which is never written, has in each sector
 * crash_base_number() all over. Time is counted in ticks: whatever begins or ends takes one
 * (crash_tick()). What is safe on a disk at a tick is what had ended before a flush of it began
 * that ended by that tick; everything else that had begun by then may be there, or not, or in part,
 * in any mixture.
 *
 * All on the main loop.
 */
#ifndef MERINO_TESTS_CRASH_DISK_H
#define MERINO_TESTS_CRASH_DISK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define CRASH_SECTOR 512
#define CRASH_NEVER  UINT64_MAX
#define CRASH_DISKS  2 /* that are written to */

/* What is on the disks. */
typedef struct CrashContent {
    GByteArray *disk[CRASH_DISKS]; /* of the image, of the data file */
} CrashContent;

CrashContent *crash_content_new(void); /* nothing */
CrashContent *crash_content_copy(const CrashContent *content);
void crash_content_free(CrashContent *content);
/* Tells contents apart. */
uint64_t crash_content_digest(const CrashContent *content);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CrashContent, crash_content_free)

typedef enum DiskOpKind {
    DISK_WRITE, /* also zero-writes and discards */
    DISK_RESIZE,
    DISK_FLUSH,
} DiskOpKind;

typedef struct DiskOp {
    DiskOpKind kind;
    int disk;
    int64_t offset; /* or the new size */
    int64_t bytes;
    uint8_t *data;       /* NULL: zeroes */
    uint64_t begin, end; /* ticks; `end` is CRASH_NEVER while it is under way */
    bool failed;         /* and was not done */
} DiskOp;

/* What becomes of the writes that are not safe. */
typedef enum CrashMode {
    CRASH_KEEP,  /* all are there */
    CRASH_DROP,  /* none is */
    CRASH_SOME,  /* some are */
    CRASH_TORN,  /* some sectors of some are */
    CRASH_MODES, /* how many there are */
} CrashMode;

void crash_disk_register(void);

uint64_t crash_tick(void);
uint64_t crash_now(void); /* the tick that was taken last */

/* What the disks hold when they are opened next; copied. Forgets what was done before. `seed`
 * decides in which order requests that are under way together come to their end. */
void crash_disk_load(const CrashContent *content, uint32_t seed);
/* What they hold now. Caller owns it. */
CrashContent *crash_disk_content(void);
/* What was done since they were loaded: of DiskOp, in the order of their beginning. Borrowed. */
const GPtrArray *crash_disk_ops(void);

/* Print what was done shortly before `cut`. */
void crash_disk_print(const GPtrArray *ops, uint64_t cut);

/* 'base' has so many bytes from now on. */
void crash_disk_set_base(int64_t bytes);
uint64_t crash_base_number(int64_t sector);

/* The n-th write, resize or flush from now on fails, once, with EIO; -1: none does. `done`: it was
 * done all the same. */
void crash_disk_fail(int64_t n, bool done);
bool crash_disk_has_failed(void);
/* When it did. */
uint64_t crash_disk_failed_at(void);

/*
 * Losses of power in a run, from earlier to later: `before` is what was loaded. A timeline keeps
 * what is safe, so that the next moment costs no more than what became safe since.
 */
typedef struct CrashTimeline CrashTimeline;

CrashTimeline *crash_timeline_new(const CrashContent *before, const GPtrArray *ops);
void crash_timeline_free(CrashTimeline *timeline);
/* What is there when power is lost at `cut`, which is not before the last one. Caller owns it. */
CrashContent *crash_timeline_cut(CrashTimeline *timeline, uint64_t cut, CrashMode mode,
                                 GRand *random);
/* Something that was done may be there or not. */
bool crash_timeline_is_open(CrashTimeline *timeline, uint64_t cut);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CrashTimeline, crash_timeline_free)

#endif
