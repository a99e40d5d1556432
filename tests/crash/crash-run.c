/* SPDX-License-Identifier: MIT */
#include "crash-run.h"

#include <inttypes.h>
#include <string.h>

static void snapshot_free(gpointer data)
{
    CrashSnapshot *snapshot = data;

    g_free(snapshot->name);
    g_free(snapshot->content);
    g_free(snapshot);
}

/* Nothing is refused for another reason than a fault. */
static bool went_well(bool ok, const char *what)
{
    if (g_getenv("MERINO_CRASH_TRACE")) {
        g_printerr("# %s %s by tick %" PRIu64 "\n", what, ok ? "went well" : "failed", crash_now());
    }
    if (!ok && !crash_disk_has_failed()) {
        g_error("%s failed, and no disk did", what);
    }
    return ok;
}

CrashRun *crash_run_new(const CrashShape *shape, uint32_t seed, int64_t fail, bool fail_done)
{
    CrashRun *run = g_new0(CrashRun, 1);

    run->shape = shape;
    run->seed = seed;
    run->random = g_rand_new_with_seed(seed);
    run->before = crash_image_create(shape);
    run->model = crash_model_new(shape->size, CRASH_MAX_SIZE(shape));
    run->bitmaps = crash_bitmaps_new(CRASH_MAX_SIZE(shape));
    run->snapshots = g_ptr_array_new_with_free_func(snapshot_free);
    run->version = shape->version ?: 3;
    crash_disk_load(run->before, seed);
    crash_disk_fail(fail, fail_done);
    run->user = crash_image_open(shape, NULL);
    went_well(run->user != NULL, "opening");
    return run;
}

void crash_run_free(CrashRun *run)
{
    g_rand_free(run->random);
    crash_content_free(run->before);
    crash_model_free(run->model);
    crash_bitmaps_free(run->bitmaps);
    g_ptr_array_unref(run->snapshots);
    g_free(run);
}

bool crash_has_bitmaps(const CrashRun *run)
{
    return run->version >= 3;
}

bool crash_has_snapshots(const CrashRun *run)
{
    return !run->shape->data_file && run->shape->refcount_bits != 1;
}

bool crash_compresses(const CrashRun *run)
{
    return !run->shape->data_file;
}

/* --- requests --- */

static int coroutine_fn send_data(CrashRun *run, unsigned flags, int64_t offset, int64_t bytes,
                                  uint64_t number)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    IoVector vec;
    int ret;

    crash_fill(data, bytes, number);
    iov_init_buf(&vec, data, bytes);
    ret = backend_co_pwritev(run->user, offset, bytes, &vec, flags);
    iov_done(&vec);
    return ret;
}

static int coroutine_fn send(CrashRun *run, CrashRequest kind, int64_t offset, int64_t bytes,
                             uint64_t number)
{
    switch (kind) {
    case CRASH_DISCARD:
        return backend_co_pdiscard(run->user, offset, bytes);
    case CRASH_ZERO:
    case CRASH_UNMAP:
        return backend_co_pwrite_zeroes(run->user, offset, bytes,
                                        kind == CRASH_UNMAP ? REQ_MAY_UNMAP : 0);
    case CRASH_COMPRESSED:
        return send_data(run, REQ_WRITE_COMPRESSED, offset, bytes, number);
    default:
        return send_data(run, kind == CRASH_FUA ? REQ_FUA : 0, offset, bytes, number);
    }
}

static void coroutine_fn co_flush(CrashRun *run)
{
    uint64_t begin = crash_tick();

    if (went_well(backend_co_flush(run->user) == 0, "a flush")) {
        crash_model_flushed(run->model, begin, crash_tick());
    }
}

void coroutine_fn crash_co_request(CrashRun *run, CrashRequest kind, int64_t offset, int64_t bytes)
{
    bool writes_data = kind == CRASH_WRITE || kind == CRASH_FUA || kind == CRASH_COMPRESSED;
    uint64_t number = writes_data ? ++run->last_number : 0;
    GuestWrite *write;
    BitmapEvent *mark;
    bool ok;

    if (!run->user) {
        return;
    }
    if (kind == CRASH_FLUSH) {
        co_flush(run);
        return;
    }
    mark = crash_bitmaps_begin(run->bitmaps, BITMAP_WRITE, NULL);
    crash_bitmap_range(mark, offset, bytes);
    write = crash_model_write(run->model, offset, bytes, number, kind == CRASH_DISCARD);
    ok = went_well(send(run, kind, offset, bytes, number) == 0, "a request");
    crash_model_written(run->model, write, ok);
    crash_bitmaps_end(mark, ok);
    write->durable = ok && kind == CRASH_FUA;
}

typedef struct Call {
    CrashRun *run;
    CrashRequest kind;
    int64_t offset, bytes;
} Call;

static void coroutine_fn call_entry(void *opaque)
{
    const Call *call = opaque;

    crash_co_request(call->run, call->kind, call->offset, call->bytes);
}

void crash_request(CrashRun *run, CrashRequest kind, int64_t offset, int64_t bytes)
{
    Call call = { run, kind, offset, bytes };

    coroutine_run(call_entry, &call);
}

/* --- the image as a whole --- */

/* Closing stores bitmaps, and what it could not write is lost. */
static void close_image(CrashRun *run)
{
    BitmapEvent *store = crash_bitmaps_begin(run->bitmaps, BITMAP_STORE, NULL);
    uint64_t begin = crash_tick(), failed_at = crash_disk_failed_at();
    bool ok;

    crash_image_close(run->user);
    run->user = NULL;
    ok = crash_disk_failed_at() == failed_at;
    crash_bitmaps_end(store, ok);
    if (ok) {
        crash_model_flushed(run->model, begin, crash_tick());
    } else {
        crash_model_forgets(run->model);
    }
}

void crash_reopen(CrashRun *run)
{
    if (run->user) {
        close_image(run);
        run->user = crash_image_open(run->shape, NULL);
        went_well(run->user != NULL, "opening");
    }
}

void crash_run_end(CrashRun *run)
{
    if (run->user) {
        close_image(run);
    }
}

void crash_read_only(CrashRun *run)
{
    BitmapEvent *store;

    if (run->user) {
        store = crash_bitmaps_begin(run->bitmaps, BITMAP_STORE, NULL);
        crash_bitmaps_end(store, went_well(crash_image_reopen(run->shape, run->user, true),
                                           "reopening read-only"));
        if (!went_well(crash_image_reopen(run->shape, run->user, false), "reopening")) {
            crash_reopen(run);
        }
    }
}

void crash_resize(CrashRun *run, int64_t size)
{
    GuestWrite *resize;
    BitmapEvent *event;
    bool ok;

    if (!run->user) {
        return;
    }
    event = crash_bitmaps_begin(run->bitmaps, BITMAP_RESIZE, NULL);
    crash_bitmap_range(event, 0, size);
    resize = crash_model_resize(run->model, backend_size(run->user), size);
    ok = went_well(node_resize(backend_node(run->user), size, NULL), "a resize");
    crash_model_resized(run->model, resize, ok);
    crash_bitmaps_end(event, ok);
}

void crash_amend(CrashRun *run, const BlockAmendOptions *options)
{
    if (run->user &&
        went_well(node_amend(backend_node(run->user), options, NULL) == 0, "amending") &&
        options->has_version) {
        run->version = options->version == BLOCKDEV_QCOW2_VERSION_V2 ? 2 : 3;
    }
}

/* --- bitmaps --- */

void crash_bitmap_add(CrashRun *run, const char *name, int64_t granularity, bool disabled)
{
    BitmapAddOptions options = {
        .name = name, .granularity = granularity, .persistent = true, .disabled = disabled
    };
    BitmapEvent *event;

    if (run->user) {
        BitmapList *list = backend_node(run->user)->bitmaps;

        event = crash_bitmaps_begin(run->bitmaps, BITMAP_ADD, name);
        crash_bitmap_added(event, granularity, disabled);
        crash_bitmaps_end(event, went_well(bitmap_add(list, &options, NULL, NULL), "adding"));
    }
}

static bool do_step(DirtyBitmap *bitmap, BitmapStep step)
{
    switch (step) {
    case BITMAP_REMOVE:
        return bitmap_remove(bitmap, NULL, NULL);
    case BITMAP_ENABLE:
        return bitmap_enable(bitmap, NULL, NULL);
    case BITMAP_DISABLE:
        return bitmap_disable(bitmap, NULL, NULL);
    default:
        return bitmap_clear(bitmap, NULL, NULL);
    }
}

static DirtyBitmap *find(const CrashRun *run, const char *name)
{
    return run->user ? bitmap_find(backend_node(run->user)->bitmaps, name) : NULL;
}

void crash_bitmap_do(CrashRun *run, BitmapStep step, const char *name)
{
    DirtyBitmap *bitmap = find(run, name);

    if (went_well(bitmap || !run->user, "finding a bitmap") && bitmap) {
        BitmapEvent *event = crash_bitmaps_begin(run->bitmaps, step, name);
        DrainSection *section = drain_begin_node(backend_node(run->user));

        crash_bitmaps_end(event, went_well(do_step(bitmap, step), "a bitmap's verb"));
        drain_end(section);
    }
}

void crash_bitmap_merge(CrashRun *run, const char *target, const char *source)
{
    DirtyBitmap *to = find(run, target), *from = find(run, source);

    if (went_well((to && from) || !run->user, "finding two bitmaps") && to && from) {
        BitmapEvent *event = crash_bitmaps_begin_merge(run->bitmaps, target, source);
        DrainSection *section = drain_begin_node(backend_node(run->user));

        crash_bitmaps_end(event, went_well(bitmap_merge(to, &from, 1, NULL, NULL), "a merge"));
        drain_end(section);
    }
}

/* --- snapshots --- */

static CrashSnapshot *find_snapshot(const CrashRun *run, const char *name)
{
    for (guint i = run->snapshots->len; i-- > 0;) {
        CrashSnapshot *snapshot = g_ptr_array_index(run->snapshots, i);

        if (g_str_equal(snapshot->name, name)) {
            return snapshot;
        }
    }
    return NULL;
}

static void span_end(CrashSpan *span, bool ok)
{
    span->end = crash_tick();
    span->ok = ok;
}

void crash_snapshot_create(CrashRun *run, const char *name)
{
    SnapshotInfo info = { .name = (char *)name, .id = (char *)"" };
    CrashSnapshot *snapshot;

    if (!run->user) {
        return;
    }
    snapshot = g_new0(CrashSnapshot, 1);
    snapshot->name = g_strdup(name);
    snapshot->size = backend_size(run->user);
    snapshot->content = crash_image_read(run->user);
    snapshot->created = (CrashSpan){ crash_tick(), CRASH_NEVER, false };
    snapshot->deleted = (CrashSpan){ CRASH_NEVER, CRASH_NEVER, false };
    g_ptr_array_add(run->snapshots, snapshot);
    span_end(&snapshot->created,
             went_well(node_snapshot_create(backend_node(run->user), &info, NULL) == 0,
                       "making a snapshot"));
}

/* To the guest it is as if it had written everything at once. */
static GPtrArray *write_content(CrashRun *run, const CrashSnapshot *snapshot)
{
    GPtrArray *writes = g_ptr_array_new();

    for (int64_t at = 0; at < snapshot->size;) {
        int64_t begin = at;
        uint64_t number, next;

        g_assert_true(crash_number(snapshot->content + at, &number));
        do {
            at += CRASH_SECTOR;
        } while (at < snapshot->size && crash_number(snapshot->content + at, &next) &&
                 next == number);
        g_ptr_array_add(writes, crash_model_write(run->model, begin, at - begin, number, false));
    }
    return writes;
}

/* Which sectors will hold something else, or are new. */
static uint8_t *find_differences(CrashRun *run, const CrashSnapshot *snapshot)
{
    g_autofree uint8_t *content = crash_image_read(run->user);
    int64_t size = backend_size(run->user);
    uint8_t *differ = g_malloc0(CRASH_MAX_SIZE(run->shape) / CRASH_SECTOR);

    for (int64_t at = 0; at < snapshot->size; at += CRASH_SECTOR) {
        differ[at / CRASH_SECTOR] =
            at >= size || memcmp(content + at, snapshot->content + at, CRASH_SECTOR) != 0;
    }
    return differ;
}

void crash_snapshot_goto(CrashRun *run, const char *name)
{
    const CrashSnapshot *snapshot = find_snapshot(run, name);
    g_autoptr(GPtrArray) writes = NULL;
    GuestWrite *resize;
    BitmapEvent *event;
    bool ok;

    if (!run->user || !snapshot) {
        return;
    }
    event = crash_bitmaps_begin(run->bitmaps, BITMAP_GOTO, NULL);
    crash_bitmap_goto(event, find_differences(run, snapshot), backend_size(run->user),
                      snapshot->size);
    resize = crash_model_resize(run->model, backend_size(run->user), snapshot->size);
    writes = write_content(run, snapshot);
    ok = went_well(node_snapshot_goto(backend_node(run->user), name, NULL) == 0,
                   "going to a snapshot");
    for (guint i = 0; i < writes->len; i++) {
        crash_model_written(run->model, g_ptr_array_index(writes, i), ok);
    }
    crash_model_resized(run->model, resize, ok);
    crash_bitmaps_end(event, ok);
}

void crash_snapshot_delete(CrashRun *run, const char *name)
{
    CrashSnapshot *snapshot = find_snapshot(run, name);

    if (run->user && snapshot) {
        snapshot->deleted.begin = crash_tick();
        span_end(&snapshot->deleted,
                 went_well(node_snapshot_delete(backend_node(run->user), name, NULL) == 0,
                           "deleting a snapshot"));
    }
}
