/* SPDX-License-Identifier: MIT */
/*
 * Slots, found by their unit through a hash table with linear probing, and in the order of their
 * age through a list. Nothing is allocated once the buffer is made; its memory is taken from the
 * system as it is first used.
 */
#include "staging.h"

#include "util/error.h"

#include <sys/mman.h>

#define NONE      UINT32_MAX      /* and what 0 in the table stands for, less 1 */
#define MAX_SLOTS ((1 << 30) - 1) /* so that twice as many places have 32-bit numbers */

typedef enum SlotState {
    SLOT_FREE, /* or reserved: in nobody's sight */
    SLOT_STAGED,
    SLOT_ON_ITS_WAY,
    SLOT_GONE, /* but somebody still reads it */
} SlotState;

typedef struct Slot {
    int64_t unit;
    uint32_t older, newer; /* while staged; `newer` links free ones */
    uint16_t pins;         /* never yielding readers: at most one a thread */
    uint8_t state;
    bool zero;
} Slot;

struct Staging {
    int64_t unit_bytes;
    uint32_t n_slots;
    char *memory;
    unsigned hash_bits;

    GMutex lock; /* guards everything below */
    Slot *slots;
    uint32_t *table;  /* slot numbers plus 1; 0: empty, as fresh memory is */
    uint32_t n_fresh; /* slots [n_fresh, n_slots) were never used */
    uint32_t first_free;
    uint32_t n_free; /* fresh ones as well */
    uint32_t oldest, newest;
    uint32_t n_inside;
    unsigned closed;
    CoQueue waiting_for_room;
    CoQueue waiting_for_arrival;
};

static bool allocate(Staging *staging)
{
    size_t n = staging->n_slots;

    staging->hash_bits = g_bit_storage(n) + 1; /* at most half full */
    staging->slots = g_try_new0(Slot, n);
    staging->table = g_try_new0(uint32_t, (size_t)1 << staging->hash_bits);
    staging->memory = mmap(NULL, n * (size_t)staging->unit_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return staging->slots && staging->table && staging->memory != MAP_FAILED;
}

Staging *staging_new(int64_t bytes, int64_t unit_bytes, int64_t units, GError **error)
{
    Staging *staging;

    if (bytes < unit_bytes) {
        merino_error(error, "staging-size must be at least %" G_GINT64_FORMAT, unit_bytes);
        return NULL;
    }
    staging = g_new0(Staging, 1);
    staging->unit_bytes = unit_bytes;
    staging->n_slots = (uint32_t)CLAMP(MIN(bytes / unit_bytes, units), 1, MAX_SLOTS);
    g_mutex_init(&staging->lock);
    if (!allocate(staging)) {
        merino_error(error, "Could not allocate the staging buffer");
        staging_free(staging);
        return NULL;
    }
    staging->n_free = staging->n_slots;
    staging->first_free = staging->oldest = staging->newest = NONE;
    co_queue_init(&staging->waiting_for_room);
    co_queue_init(&staging->waiting_for_arrival);
    return staging;
}

void staging_free(Staging *staging)
{
    if (!staging) {
        return;
    }
    if (staging->memory != MAP_FAILED) {
        munmap(staging->memory, (size_t)staging->n_slots * (size_t)staging->unit_bytes);
    }
    g_mutex_clear(&staging->lock);
    g_free(staging->slots);
    g_free(staging->table);
    g_free(staging);
}

/* --- the table; everything here is under the lock --- */

static uint32_t home_of(const Staging *staging, int64_t unit)
{
    return (uint32_t)((uint64_t)unit * UINT64_C(0x9e3779b97f4a7c15) >> (64 - staging->hash_bits));
}

static uint32_t next_place(const Staging *staging, uint32_t place)
{
    return (place + 1) & (((uint32_t)1 << staging->hash_bits) - 1);
}

static uint32_t slot_at(const Staging *staging, uint32_t place)
{
    return staging->table[place] - 1;
}

static uint32_t find_place(const Staging *staging, int64_t unit)
{
    uint32_t place = home_of(staging, unit);

    while (staging->table[place] && staging->slots[slot_at(staging, place)].unit != unit) {
        place = next_place(staging, place);
    }
    return place;
}

/* The slot of a unit; NONE when it is not in the buffer. */
static uint32_t find_slot(const Staging *staging, int64_t unit)
{
    return slot_at(staging, find_place(staging, unit));
}

/* Those behind it move up, so that no search ends too early. */
static void table_remove(Staging *staging, int64_t unit)
{
    uint32_t mask = ((uint32_t)1 << staging->hash_bits) - 1;
    uint32_t hole = find_place(staging, unit);

    for (uint32_t at = next_place(staging, hole); staging->table[at];
         at = next_place(staging, at)) {
        uint32_t home = home_of(staging, staging->slots[slot_at(staging, at)].unit);

        if (((at - home) & mask) >= ((at - hole) & mask)) {
            staging->table[hole] = staging->table[at];
            hole = at;
        }
    }
    staging->table[hole] = 0;
}

/* --- slots; under the lock --- */

static uint32_t take_slot(Staging *staging)
{
    uint32_t slot = staging->first_free;

    staging->n_free--;
    if (slot == NONE) {
        return staging->n_fresh++;
    }
    staging->first_free = staging->slots[slot].newer;
    return slot;
}

static void free_slot(Staging *staging, uint32_t slot)
{
    staging->slots[slot].state = SLOT_FREE;
    staging->slots[slot].newer = staging->first_free;
    staging->first_free = slot;
    staging->n_free++;
}

static void list_append(Staging *staging, uint32_t slot)
{
    staging->slots[slot].older = staging->newest;
    staging->slots[slot].newer = NONE;
    if (staging->newest == NONE) {
        staging->oldest = slot;
    } else {
        staging->slots[staging->newest].newer = slot;
    }
    staging->newest = slot;
}

static void list_remove(Staging *staging, uint32_t slot)
{
    uint32_t older = staging->slots[slot].older, newer = staging->slots[slot].newer;

    if (older == NONE) {
        staging->oldest = newer;
    } else {
        staging->slots[older].newer = newer;
    }
    if (newer == NONE) {
        staging->newest = older;
    } else {
        staging->slots[newer].older = older;
    }
}

/* Nobody finds it any more. */
static void leave(Staging *staging, uint32_t slot)
{
    table_remove(staging, staging->slots[slot].unit);
    staging->n_inside--;
    if (staging->slots[slot].pins) {
        staging->slots[slot].state = SLOT_GONE;
    } else {
        free_slot(staging, slot);
    }
}

static void drop_staged(Staging *staging, uint32_t slot)
{
    list_remove(staging, slot);
    leave(staging, slot);
}

/* Whoever gets room passes on what he leaves. */
static void offer_room(Staging *staging)
{
    if (staging->n_free) {
        co_queue_wake_one(&staging->waiting_for_room);
    }
}

/* --- filling --- */

bool coroutine_fn staging_reserve(Staging *staging, int64_t first, unsigned n, StagedRun *ret)
{
    bool open;

    g_mutex_lock(&staging->lock);
    if (!staging->n_free && !staging->closed) {
        do {
            co_queue_wait(&staging->waiting_for_room, &staging->lock);
        } while (!staging->n_free && !staging->closed);
    }
    open = !staging->closed;
    if (open) {
        ret->first = first;
        ret->n = MIN(MIN(n, STAGING_RUN_MAX), staging->n_free);
        ret->zero = false;
        for (unsigned i = 0; i < ret->n; i++) {
            ret->slots[i] = take_slot(staging);
        }
        offer_room(staging);
    }
    g_mutex_unlock(&staging->lock);
    return open;
}

void staging_trim(Staging *staging, StagedRun *run, unsigned n)
{
    if (n == run->n) {
        return;
    }
    g_mutex_lock(&staging->lock);
    while (run->n > n) {
        free_slot(staging, run->slots[--run->n]);
    }
    offer_room(staging);
    g_mutex_unlock(&staging->lock);
}

void staging_publish(Staging *staging, const StagedRun *run)
{
    g_mutex_lock(&staging->lock);
    for (unsigned i = 0; i < run->n; i++) {
        uint32_t number = run->slots[i];
        uint32_t place = find_place(staging, run->first + i);

        g_assert(!staging->table[place]);
        staging->table[place] = number + 1;
        staging->slots[number].unit = run->first + i;
        staging->slots[number].state = SLOT_STAGED;
        staging->slots[number].zero = run->zero;
        list_append(staging, number);
    }
    staging->n_inside += run->n;
    g_mutex_unlock(&staging->lock);
}

void staging_close(Staging *staging)
{
    g_mutex_lock(&staging->lock);
    staging->closed++;
    co_queue_wake_all(&staging->waiting_for_room);
    g_mutex_unlock(&staging->lock);
}

void staging_open(Staging *staging)
{
    g_mutex_lock(&staging->lock);
    g_assert(staging->closed);
    staging->closed--;
    g_mutex_unlock(&staging->lock);
}

/* --- reading --- */

int64_t staging_next(Staging *staging, int64_t first, int64_t end)
{
    g_mutex_lock(&staging->lock);
    if (!staging->n_inside) {
        first = end;
    }
    while (first < end && find_slot(staging, first) == NONE) {
        first++;
    }
    g_mutex_unlock(&staging->lock);
    return first;
}

void staging_pin(Staging *staging, int64_t first, int64_t end, StagedRun *ret)
{
    ret->first = first;
    ret->n = 0;
    g_mutex_lock(&staging->lock);
    for (int64_t unit = first; unit < end && ret->n < STAGING_RUN_MAX; unit++) {
        uint32_t number = staging->n_inside ? find_slot(staging, unit) : NONE;

        if (number == NONE || (ret->n && staging->slots[number].zero != ret->zero)) {
            break;
        }
        ret->zero = staging->slots[number].zero;
        ret->slots[ret->n++] = number;
        staging->slots[number].pins++;
    }
    g_mutex_unlock(&staging->lock);
}

void staging_unpin(Staging *staging, const StagedRun *run)
{
    g_mutex_lock(&staging->lock);
    for (unsigned i = 0; i < run->n; i++) {
        Slot *slot = &staging->slots[run->slots[i]];

        slot->pins--;
        if (!slot->pins && slot->state == SLOT_GONE) {
            free_slot(staging, run->slots[i]);
        }
    }
    offer_room(staging);
    g_mutex_unlock(&staging->lock);
}

/* Slots that lie one behind the other are one piece. */
void staging_add_memory(Staging *staging, const StagedRun *run, IoVector *vec, int64_t skip,
                        int64_t bytes)
{
    int64_t unit = staging->unit_bytes, at = skip, end = skip + bytes;

    while (at < end) {
        unsigned first = (unsigned)(at / unit), last = first;
        char *memory = staging->memory + run->slots[first] * unit + at % unit;
        int64_t piece;

        while (last + 1 < run->n && run->slots[last + 1] == run->slots[last] + 1) {
            last++;
        }
        piece = MIN(end, (last + 1) * unit) - at;
        iov_add(vec, memory, (size_t)piece);
        at += piece;
    }
}

/* --- emptying --- */

static bool can_join(const Staging *staging, int64_t unit, bool zero)
{
    uint32_t number = find_slot(staging, unit);

    return number != NONE && staging->slots[number].state == SLOT_STAGED &&
           staging->slots[number].zero == zero;
}

bool staging_send(Staging *staging, unsigned max, StagedRun *ret)
{
    bool any;

    max = MIN(max, STAGING_RUN_MAX);
    g_mutex_lock(&staging->lock);
    any = staging->oldest != NONE;
    if (any) {
        const Slot *oldest = &staging->slots[staging->oldest];
        int64_t first = oldest->unit, end = first + 1;

        ret->zero = oldest->zero;
        while (end - first < max && can_join(staging, end, ret->zero)) {
            end++;
        }
        while (end - first < max && can_join(staging, first - 1, ret->zero)) {
            first--;
        }
        ret->first = first;
        ret->n = (unsigned)(end - first);
        for (unsigned i = 0; i < ret->n; i++) {
            ret->slots[i] = find_slot(staging, first + i);
            staging->slots[ret->slots[i]].state = SLOT_ON_ITS_WAY;
            list_remove(staging, ret->slots[i]);
        }
    }
    g_mutex_unlock(&staging->lock);
    return any;
}

void staging_arrived(Staging *staging, const StagedRun *run)
{
    g_mutex_lock(&staging->lock);
    for (unsigned i = 0; i < run->n; i++) {
        leave(staging, run->slots[i]);
    }
    offer_room(staging);
    co_queue_wake_all(&staging->waiting_for_arrival);
    g_mutex_unlock(&staging->lock);
}

/* Only what is in the buffer is looked at, by whichever way is shorter. */
static bool drop_step(Staging *staging, int64_t first, int64_t end)
{
    bool on_its_way = false;

    if (end - first > staging->n_slots) {
        for (uint32_t i = 0; i < staging->n_fresh; i++) {
            Slot *slot = &staging->slots[i];

            if (slot->unit < first || slot->unit >= end) {
                continue;
            }
            if (slot->state == SLOT_STAGED) {
                drop_staged(staging, i);
            }
            on_its_way = on_its_way || slot->state == SLOT_ON_ITS_WAY;
        }
        return on_its_way;
    }
    for (int64_t unit = first; unit < end && staging->n_inside; unit++) {
        uint32_t number = find_slot(staging, unit);

        if (number != NONE && staging->slots[number].state == SLOT_STAGED) {
            drop_staged(staging, number);
        } else if (number != NONE) {
            on_its_way = true;
        }
    }
    return on_its_way;
}

void coroutine_fn staging_drop(Staging *staging, int64_t first, int64_t end)
{
    g_mutex_lock(&staging->lock);
    while (drop_step(staging, first, end)) {
        co_queue_wait(&staging->waiting_for_arrival, &staging->lock);
    }
    offer_room(staging);
    g_mutex_unlock(&staging->lock);
}

void staging_drop_all(Staging *staging)
{
    g_mutex_lock(&staging->lock);
    while (staging->oldest != NONE) {
        drop_staged(staging, staging->oldest);
    }
    offer_room(staging);
    g_mutex_unlock(&staging->lock);
}

unsigned staging_count(Staging *staging)
{
    unsigned n;

    g_mutex_lock(&staging->lock);
    n = staging->n_inside;
    g_mutex_unlock(&staging->lock);
    return n;
}
