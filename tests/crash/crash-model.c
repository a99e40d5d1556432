/* SPDX-License-Identifier: MIT */
#include "crash-model.h"

#include <inttypes.h>
#include <string.h>

typedef struct GuestFlush {
    uint64_t begin, end;
} GuestFlush;

struct CrashModel {
    int64_t sectors;
    GPtrArray *writes;   /* of GuestWrite, all, owned */
    GPtrArray **history; /* of each sector: GuestWrite, in order; NULL: never written */
    GArray *flushes;     /* of GuestFlush */
};

CrashModel *crash_model_new(int64_t bytes)
{
    CrashModel *model = g_new0(CrashModel, 1);

    model->sectors = bytes / CRASH_SECTOR;
    model->writes = g_ptr_array_new_with_free_func(g_free);
    model->history = g_new0(GPtrArray *, model->sectors);
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
    g_array_unref(model->flushes);
    g_free(model);
}

GuestWrite *crash_model_write(CrashModel *model, int64_t offset, int64_t bytes, uint64_t number,
                              bool optional)
{
    GuestWrite *write = g_new(GuestWrite, 1);

    *write = (GuestWrite){ offset, bytes, number, crash_tick(), CRASH_NEVER, optional, false };
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

/* From the latest write back to the one that must be there. */
static bool sector_allows(const CrashModel *model, int64_t sector, uint64_t cut, uint64_t flush,
                          uint64_t number)
{
    const GPtrArray *history = model->history[sector];

    for (guint i = history ? history->len : 0; i-- > 0;) {
        const GuestWrite *write = g_ptr_array_index(history, i);

        if (write->begin > cut) {
            continue;
        }
        if (write->number == number) {
            return true;
        }
        if ((write->end < flush || (write->durable && write->end <= cut)) && !write->optional) {
            return false;
        }
    }
    return number == 0;
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

bool crash_model_allows(CrashModel *model, uint64_t cut, const uint8_t *content)
{
    uint64_t flush = last_flush(model, cut);

    for (int64_t i = 0; i < model->sectors; i++) {
        uint64_t number;
        bool whole = crash_number(content + i * CRASH_SECTOR, &number);

        if (!whole || !sector_allows(model, i, cut, flush, number)) {
            g_printerr("# sector %" PRId64 " holds %" PRIu64 "%s\n", i, number,
                       whole ? "" : " and more");
            print_history(model, i, cut, flush);
            return false;
        }
    }
    return true;
}
