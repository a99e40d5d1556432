/* SPDX-License-Identifier: MIT */
#include "crash-model.h"

#include <inttypes.h>
#include <string.h>

typedef struct GuestFlush {
    uint64_t begin, end;
} GuestFlush;

struct CrashModel {
    int64_t sectors;
    int64_t size;        /* at first */
    GPtrArray *writes;   /* of GuestWrite, all, owned */
    GPtrArray **history; /* of each sector: GuestWrite, in order; NULL: never written */
    GPtrArray *resizes;  /* GuestWrite, in order: the size is the number */
    GPtrArray *cuts;     /* GuestWrite: what each resize cut off, or NULL */
    GArray *flushes;     /* of GuestFlush */
};

CrashModel *crash_model_new(int64_t size, int64_t max)
{
    CrashModel *model = g_new0(CrashModel, 1);

    model->sectors = max / CRASH_SECTOR;
    model->size = size;
    model->writes = g_ptr_array_new_with_free_func(g_free);
    model->history = g_new0(GPtrArray *, model->sectors);
    model->resizes = g_ptr_array_new();
    model->cuts = g_ptr_array_new();
    model->flushes = g_array_new(FALSE, FALSE, sizeof(GuestFlush));
    return model;
}

void crash_model_free(CrashModel *model)
{
    for (int64_t i = 0; i < model->sectors; i++) {
        if (model->history[i]) {
            g_ptr_array_unref(model->history[i]);
        }
    }
    g_free(model->history);
    g_ptr_array_unref(model->writes);
    g_ptr_array_unref(model->resizes);
    g_ptr_array_unref(model->cuts);
    g_array_unref(model->flushes);
    g_free(model);
}

GuestWrite *crash_model_write(CrashModel *model, int64_t offset, int64_t bytes, uint64_t number,
                              bool optional)
{
    GuestWrite *write = g_new(GuestWrite, 1);

    *write =
        (GuestWrite){ offset, bytes, number, crash_tick(), CRASH_NEVER, optional, false, false };
    g_ptr_array_add(model->writes, write);
    for (int64_t i = offset / CRASH_SECTOR; i < (offset + bytes) / CRASH_SECTOR; i++) {
        if (!model->history[i]) {
            model->history[i] = g_ptr_array_new();
        }
        g_ptr_array_add(model->history[i], write);
    }
    return write;
}

void crash_model_written(CrashModel *model, GuestWrite *write, bool ok)
{
    write->end = crash_tick();
    write->optional |= !ok;
}

GuestWrite *crash_model_resize(CrashModel *model, int64_t old, int64_t size)
{
    GuestWrite *resize = crash_model_write(model, 0, 0, (uint64_t)size, false);
    GuestWrite *cut;

    g_ptr_array_add(model->resizes, resize);
    cut = size < old ? crash_model_write(model, size, old - size, 0, false) : NULL;
    if (cut) {
        cut->uncovers = true;
    }
    g_ptr_array_add(model->cuts, cut);
    return resize;
}

void crash_model_resized(CrashModel *model, GuestWrite *resize, bool ok)
{
    GuestWrite *cut = g_ptr_array_index(model->cuts, model->cuts->len - 1);

    crash_model_written(model, resize, ok);
    if (cut) {
        crash_model_written(model, cut, ok);
    }
}

void crash_model_flushed(CrashModel *model, uint64_t begin, uint64_t end)
{
    GuestFlush flush = { begin, end };

    g_array_append_val(model->flushes, flush);
}

void crash_fill(uint8_t *buf, int64_t bytes, uint64_t number)
{
    for (int64_t i = 0; i < bytes; i += (int64_t)sizeof(number)) {
        memcpy(buf + i, &number, sizeof(number));
    }
}

bool crash_number(const uint8_t *sector, uint64_t *ret_number)
{
    memcpy(ret_number, sector, sizeof(*ret_number));
    return memcmp(sector, sector + sizeof(*ret_number), CRASH_SECTOR - sizeof(*ret_number)) == 0;
}

static uint64_t last_flush(const CrashModel *model, uint64_t cut)
{
    uint64_t begin = 0;

    for (guint i = 0; i < model->flushes->len; i++) {
        const GuestFlush *flush = &g_array_index(model->flushes, GuestFlush, i);

        if (flush->end <= cut) {
            begin = MAX(begin, flush->begin);
        }
    }
    return begin;
}

uint64_t crash_model_demands(const CrashModel *model, uint64_t cut)
{
    uint64_t demands = last_flush(model, cut);

    for (guint i = 0; i < model->writes->len; i++) {
        const GuestWrite *write = g_ptr_array_index(model->writes, i);

        if (write->durable && write->end <= cut) {
            demands = MAX(demands, write->end);
        }
    }
    return demands;
}

/* From the latest write back to the one that must be there. */
static bool history_allows(const GPtrArray *history, uint64_t cut, uint64_t flush, uint64_t number,
                           uint64_t at_first, uint64_t beneath)
{
    for (guint i = history ? history->len : 0; i-- > 0;) {
        const GuestWrite *write = g_ptr_array_index(history, i);

        if (write->begin > cut) {
            continue;
        }
        if (write->number == number || (write->uncovers && number == beneath)) {
            return true;
        }
        if ((write->end < flush || (write->durable && write->end <= cut)) && !write->optional) {
            return false;
        }
    }
    return number == at_first;
}

void crash_model_forgets(CrashModel *model)
{
    uint64_t flush = last_flush(model, CRASH_NEVER);

    for (guint i = 0; i < model->writes->len; i++) {
        GuestWrite *write = g_ptr_array_index(model->writes, i);

        write->optional |= write->end >= flush && !write->durable;
    }
}

static void print_history(const CrashModel *model, int64_t sector, uint64_t cut, uint64_t flush)
{
    const GPtrArray *history = model->history[sector];

    g_printerr("# power lost at %" PRIu64 ", last flush began at %" PRIu64 "\n", cut, flush);
    for (guint i = 0; i < (history ? history->len : 0); i++) {
        const GuestWrite *write = g_ptr_array_index(history, i);

        g_printerr("# number %" PRIu64 " from %" PRIu64 " to %" PRIu64 "%s\n", write->number,
                   write->begin, write->end, write->optional ? ", may be left out" : "");
    }
}

static bool sector_is_good(const CrashModel *model, int64_t sector, uint64_t cut, uint64_t flush,
                           const uint8_t *content)
{
    uint64_t number = 0;
    bool whole = !content || crash_number(content, &number);
    uint64_t beneath = crash_base_number(sector);
    uint64_t at_first = sector * CRASH_SECTOR < model->size ? beneath : 0;

    if (whole && history_allows(model->history[sector], cut, flush, number, at_first, beneath)) {
        return true;
    }
    g_printerr("# sector %" PRId64 " holds %" PRIu64 "%s\n", sector, number,
               whole ? "" : " and more");
    print_history(model, sector, cut, flush);
    return false;
}

/* What lies beyond a disk's end counts as zeroes. */
bool crash_model_allows(CrashModel *model, uint64_t cut, const uint8_t *content, int64_t size)
{
    uint64_t flush = last_flush(model, cut);

    if (!history_allows(model->resizes, cut, flush, (uint64_t)size, (uint64_t)model->size, 0)) {
        g_printerr("# the disk's size is %" PRId64 "\n", size);
        return false;
    }
    for (int64_t i = 0; i < model->sectors; i++) {
        const uint8_t *sector = i * CRASH_SECTOR < size ? content + i * CRASH_SECTOR : NULL;

        if (!sector_is_good(model, i, cut, flush, sector)) {
            return false;
        }
    }
    return true;
}
