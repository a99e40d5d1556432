/* SPDX-License-Identifier: MIT */
#include "crash-bitmaps.h"
#include "util/size.h"

#include <inttypes.h>
#include <string.h>

/* What is known of one bitmap at a moment. */
typedef struct State {
    bool may_be_there, may_lack;
    bool may_be_on, may_be_off;
    bool may_be_marked;
    bool fault; /* something failed */
    int64_t granularity;
    uint8_t *must, *may; /* for each sector */
} State;

struct BitmapEvent {
    BitmapStep step;
    char *name; /* NULL: all */
    uint64_t begin, end;
    bool ok;
    bool disabled;
    int64_t granularity;
    int64_t offset, bytes;
    bool resizes;
    uint8_t *must, *may; /* of a merge's source; what must differ after going to a snapshot */
};

struct CrashBitmaps {
    int64_t sectors;
    GPtrArray *events; /* of BitmapEvent, in the order of their beginning */
    GPtrArray *names;
};

static void event_free(gpointer data)
{
    BitmapEvent *event = data;

    g_free(event->name);
    g_free(event->must);
    g_free(event->may);
    g_free(event);
}

CrashBitmaps *crash_bitmaps_new(int64_t max)
{
    CrashBitmaps *bitmaps = g_new0(CrashBitmaps, 1);

    bitmaps->sectors = max / CRASH_SECTOR;
    bitmaps->events = g_ptr_array_new_with_free_func(event_free);
    bitmaps->names = g_ptr_array_new_with_free_func(g_free);
    return bitmaps;
}

void crash_bitmaps_free(CrashBitmaps *bitmaps)
{
    g_ptr_array_unref(bitmaps->events);
    g_ptr_array_unref(bitmaps->names);
    g_free(bitmaps);
}

/* --- what happened --- */

BitmapEvent *crash_bitmaps_begin(CrashBitmaps *bitmaps, BitmapStep step, const char *name)
{
    BitmapEvent *event = g_new0(BitmapEvent, 1);

    event->step = step;
    event->name = g_strdup(name);
    event->begin = crash_tick();
    event->end = CRASH_NEVER;
    g_ptr_array_add(bitmaps->events, event);
    if (name && !g_ptr_array_find_with_equal_func(bitmaps->names, name, g_str_equal, NULL)) {
        g_ptr_array_add(bitmaps->names, g_strdup(name));
    }
    return event;
}

void crash_bitmap_added(BitmapEvent *event, int64_t granularity, bool disabled)
{
    event->granularity = granularity;
    event->disabled = disabled;
}

void crash_bitmap_range(BitmapEvent *event, int64_t offset, int64_t bytes)
{
    event->offset = offset;
    event->bytes = bytes;
}

void crash_bitmap_goto(BitmapEvent *event, uint8_t *differ, int64_t old, int64_t size)
{
    event->must = differ;
    event->bytes = size;
    event->resizes = size != old;
}

void crash_bitmaps_end(BitmapEvent *event, bool ok)
{
    event->end = crash_tick();
    event->ok = ok;
}

/* --- playing it again --- */

static void add_bits(uint8_t *bits, const uint8_t *more, int64_t sectors)
{
    for (int64_t i = 0; i < sectors; i++) {
        bits[i] |= more[i];
    }
}

static void play_write(State *state, const BitmapEvent *event, bool done)
{
    int64_t first = event->offset / CRASH_SECTOR, n = event->bytes / CRASH_SECTOR;

    if (state->may_be_on) {
        memset(state->may + first, 1, n);
    }
    if (done && !state->may_be_off) {
        memset(state->must + first, 1, n);
    }
}

/* The bit at the end may stay for the sake of what was cut off. */
static void play_resize(State *state, const BitmapEvent *event, bool done, int64_t sectors)
{
    int64_t end = event->bytes / CRASH_SECTOR;
    int64_t may_end = MIN(align_up(event->bytes, state->granularity) / CRASH_SECTOR, sectors);

    memset(state->must + end, 0, sectors - end);
    if (done) {
        memset(state->may + may_end, 0, sectors - may_end);
    }
}

/* Clusters may be others and have the same contents. */
static void play_goto(State *state, const BitmapEvent *event, bool done, int64_t sectors)
{
    if (state->may_be_on) {
        memset(state->may, 1, align_up(event->bytes, state->granularity) / CRASH_SECTOR);
    }
    if (done && !state->may_be_off) {
        add_bits(state->must, event->must, sectors);
    }
    if (event->resizes) {
        play_resize(state, event, done, sectors);
    }
}

static void play_add(State *state, const BitmapEvent *event, bool done, int64_t sectors)
{
    if (done) { /* so there was none before */
        state->may_be_on = state->may_be_off = false;
        memset(state->must, 0, sectors);
        memset(state->may, 0, sectors);
    }
    state->granularity = event->granularity;
    state->may_be_there = state->may_lack = true;
    *(event->disabled ? &state->may_be_off : &state->may_be_on) = true;
}

static void play_switch(State *state, bool on, bool done)
{
    state->may_be_on = on || (!done && state->may_be_on);
    state->may_be_off = !on || (!done && state->may_be_off);
}

/* What is stored, and whole, is no longer marked until it changes. */
static void play_mark(State *state, const BitmapEvent *event, bool done)
{
    state->fault |= event->end != CRASH_NEVER && !event->ok;
    if (event->step == BITMAP_STORE) {
        state->may_be_marked = !done || state->fault;
    } else if ((event->step != BITMAP_WRITE && event->step != BITMAP_GOTO) || state->may_be_on ||
               event->resizes) {
        state->may_be_marked = true;
    }
}

static void play(State *state, const BitmapEvent *event, bool done, int64_t sectors)
{
    play_mark(state, event, done);
    switch (event->step) {
    case BITMAP_ADD:
        play_add(state, event, done, sectors);
        break;
    case BITMAP_REMOVE:
        state->may_lack = true;
        state->may_be_there &= !done;
        break;
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        play_switch(state, event->step == BITMAP_ENABLE, done);
        break;
    case BITMAP_CLEAR:
        memset(state->must, 0, sectors);
        memset(state->may, 0, done ? sectors : 0);
        break;
    case BITMAP_MERGE:
        add_bits(state->may, event->may, sectors);
        add_bits(state->must, event->must, done ? sectors : 0);
        break;
    case BITMAP_STORE:
        state->may_lack &= !(done && state->may_be_there) || state->fault;
        break;
    case BITMAP_WRITE:
        play_write(state, event, done);
        break;
    case BITMAP_RESIZE:
        play_resize(state, event, done, sectors);
        break;
    case BITMAP_GOTO:
        play_goto(state, event, done, sectors);
        break;
    }
}

static State *state_at(const CrashBitmaps *bitmaps, const char *name, uint64_t cut)
{
    State *state = g_new0(State, 1);

    state->may_lack = true;
    state->granularity = CRASH_SECTOR;
    state->must = g_malloc0(bitmaps->sectors);
    state->may = g_malloc0(bitmaps->sectors);
    for (guint i = 0; i < bitmaps->events->len; i++) {
        const BitmapEvent *event = g_ptr_array_index(bitmaps->events, i);

        if (event->begin > cut) {
            break;
        }
        if (!event->name || g_str_equal(event->name, name)) {
            play(state, event, event->ok && event->end <= cut, bitmaps->sectors);
        }
    }
    return state;
}

static void state_free(State *state)
{
    g_free(state->must);
    g_free(state->may);
    g_free(state);
}

BitmapEvent *crash_bitmaps_begin_merge(CrashBitmaps *bitmaps, const char *target,
                                       const char *source)
{
    State *state = state_at(bitmaps, source, crash_now());
    BitmapEvent *event = crash_bitmaps_begin(bitmaps, BITMAP_MERGE, target);

    event->must = g_steal_pointer(&state->must);
    event->may = g_steal_pointer(&state->may);
    state_free(state);
    return event;
}

/* --- judging --- */

uint64_t crash_bitmaps_demands(const CrashBitmaps *bitmaps, uint64_t cut)
{
    uint64_t demands = 0;

    for (guint i = 0; i < bitmaps->events->len; i++) {
        const BitmapEvent *event = g_ptr_array_index(bitmaps->events, i);

        demands += event->begin <= cut;
        demands += event->end <= cut;
    }
    return demands;
}

static bool complain(const char *name, const char *words, int64_t offset)
{
    g_printerr("# bitmap '%s' %s", name, words);
    g_printerr(offset < 0 ? "\n" : " at %" PRId64 "\n", offset);
    return false;
}

/* What was done to it, and to the disk there. */
static void print_events(const CrashBitmaps *bitmaps, DirtyBitmap *bitmap, int64_t at)
{
    static const char *const steps[] = { "add",   "remove", "enable", "disable", "clear",
                                         "merge", "store",  "write",  "resize",  "goto" };
    int64_t end = at + bitmap_granularity(bitmap);

    g_printerr("# bitmap '%s': granularity %" PRId64 ", %" PRId64 " of %" PRId64
               " bytes are dirty\n",
               bitmap_name(bitmap), bitmap_granularity(bitmap), bitmap_dirty_bytes(bitmap),
               bitmap_size(bitmap));
    for (guint i = 0; i < bitmaps->events->len; i++) {
        const BitmapEvent *event = g_ptr_array_index(bitmaps->events, i);
        bool elsewhere = event->step == BITMAP_WRITE &&
                         (event->offset >= end || event->offset + event->bytes <= at);

        if (!elsewhere && (!event->name || g_str_equal(event->name, bitmap_name(bitmap)))) {
            g_printerr("# %" PRIu64 "-%" PRIu64 ": %s %" PRId64 " +%" PRId64 "%s\n", event->begin,
                       event->end, steps[event->step], event->offset, event->bytes,
                       event->ok ? "" : ", failed");
        }
    }
}

static bool bits_are_good(const CrashBitmaps *bitmaps, const State *state, DirtyBitmap *bitmap)
{
    int64_t grain = bitmap_granularity(bitmap) / CRASH_SECTOR;
    int64_t sectors = bitmap_size(bitmap) / CRASH_SECTOR;

    for (int64_t at = 0; at < sectors; at += grain) {
        int64_t end = MIN(at + grain, bitmaps->sectors);
        bool dirty = bitmap_get(bitmap, at * CRASH_SECTOR);

        if (dirty ? !memchr(state->may + at, 1, end - at)
                  : !!memchr(state->must + at, 1, end - at)) {
            print_events(bitmaps, bitmap, at * CRASH_SECTOR);
            return complain(bitmap_name(bitmap), dirty ? "was not written to" : "misses a write",
                            at * CRASH_SECTOR);
        }
    }
    return true;
}

static bool bitmap_is_good(const CrashBitmaps *bitmaps, const State *state, const char *name,
                           DirtyBitmap *bitmap, int *ret_sound)
{
    if (!bitmap) {
        return state->may_lack || complain(name, "is not there", -1);
    }
    if (!state->may_be_there) {
        return complain(name, "is there", -1);
    }
    if (!bitmap_load(bitmap, NULL) || bitmap_is_inconsistent(bitmap)) {
        return state->may_be_marked || complain(name, "is inconsistent", -1);
    }
    *ret_sound += 1;
    if (!(bitmap_is_enabled(bitmap) ? state->may_be_on : state->may_be_off)) {
        return complain(name, "is switched the wrong way", -1);
    }
    return bits_are_good(bitmaps, state, bitmap);
}

bool crash_bitmaps_allow(CrashBitmaps *bitmaps, uint64_t cut, BitmapList *list, int *ret_sound)
{
    bool good = true;

    for (guint i = 0; i < bitmaps->names->len && good; i++) {
        const char *name = g_ptr_array_index(bitmaps->names, i);
        State *state = state_at(bitmaps, name, cut);

        good = bitmap_is_good(bitmaps, state, name, bitmap_find(list, name), ret_sound);
        state_free(state);
    }
    return good;
}
