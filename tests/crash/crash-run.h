/* SPDX-License-Identifier: MIT */
/*
 * A guest and its manager at work on an image: whatever they do is told to the models of the disk,
 * the bitmaps and the snapshots. As long as no disk has failed, everything must succeed; when an
 * image cannot be opened again because one did, nothing more happens.
 */
#ifndef MERINO_TESTS_CRASH_RUN_H
#define MERINO_TESTS_CRASH_RUN_H

#include "block/image.h"
#include "crash-bitmaps.h"
#include "crash-image.h"
#include "crash-model.h"

/* From beginning to end, by ticks; `ok` once it is over. */
typedef struct CrashSpan {
    uint64_t begin, end;
    bool ok;
} CrashSpan;

typedef struct CrashSnapshot {
    char *name;
    int64_t size;
    uint8_t *content;
    CrashSpan created, deleted; /* deleted.begin CRASH_NEVER: it is not */
} CrashSnapshot;

typedef struct CrashRun {
    const CrashShape *shape;
    uint32_t seed;
    GRand *random;
    CrashContent *before; /* what was on the disks */
    CrashModel *model;
    CrashBitmaps *bitmaps;
    GPtrArray *snapshots; /* of CrashSnapshot */
    BlockBackend *user;   /* NULL: the image could not be opened */
    uint64_t last_number;
    int version; /* of the image now */
} CrashRun;

#define CRASH_MAX_SIZE(shape) (2 * (shape)->size)

/* A new image, open; with `fail` >= 0 that write, resize or flush from then on fails. */
CrashRun *crash_run_new(const CrashShape *shape, uint32_t seed, int64_t fail, bool fail_done);
/* The image is closed. */
void crash_run_end(CrashRun *run);
void crash_run_free(CrashRun *run);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CrashRun, crash_run_free)

/* What kinds of images can do. */
bool crash_has_bitmaps(const CrashRun *run);
bool crash_has_snapshots(const CrashRun *run);
bool crash_compresses(const CrashRun *run);

/* Requests, in the image's size. */
typedef enum CrashRequest {
    CRASH_WRITE,
    CRASH_FUA,
    CRASH_COMPRESSED, /* whole clusters */
    CRASH_ZERO,
    CRASH_UNMAP,
    CRASH_DISCARD,
    CRASH_FLUSH, /* no range */
} CrashRequest;

void coroutine_fn crash_co_request(CrashRun *run, CrashRequest kind, int64_t offset, int64_t bytes);

/* The rest is for when no request is under way. */
void crash_request(CrashRun *run, CrashRequest kind, int64_t offset, int64_t bytes);
void crash_reopen(CrashRun *run);    /* closed and opened */
void crash_read_only(CrashRun *run); /* and back */
void crash_resize(CrashRun *run, int64_t size);
void crash_amend(CrashRun *run, const BlockAmendOptions *options);

void crash_bitmap_add(CrashRun *run, const char *name, int64_t granularity, bool disabled);
/* REMOVE, ENABLE, DISABLE, CLEAR. */
void crash_bitmap_do(CrashRun *run, BitmapStep step, const char *name);
void crash_bitmap_merge(CrashRun *run, const char *target, const char *source);

void crash_snapshot_create(CrashRun *run, const char *name);
void crash_snapshot_goto(CrashRun *run, const char *name);
void crash_snapshot_delete(CrashRun *run, const char *name);

#endif
