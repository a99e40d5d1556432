/* SPDX-License-Identifier: MIT */
/*
 * The `throttle-group` objects by id, and whose turn it is in each.
 *
 * Requests of each direction wait in line: the members that have any take turns, and each member's
 * own go first come, first served. The request at the head of a line keeps the time: it arms a
 * timer of its own loop, and when that fires, all requests that may begin do, the two lines in
 * turn; then the new heads keep the time. So a timer belongs to a request that waits on the loop,
 * and neither outlives the other.
 *
 * A request is woken only by whoever finds it asleep (`awake` is false) with the group's lock held,
 * so each of its yields gets one wake.
 *
 * Which directions are limited at all does not change; requests without limits take no lock.
 */
#include "block/throttle.h"
#include "util/error.h"
#include "util/event-loop.h"

struct ThrottleGroup {
    char *id;
    unsigned members;
    bool limited[THROTTLE_DIRECTIONS];
    int64_t (*clock)(void);

    GMutex lock; /* guards what follows, and the members' waiting requests */
    ThrottleState state;
    ThrottleDirection served;          /* the line that was served last */
    GQueue lines[THROTTLE_DIRECTIONS]; /* ThrottleMember *, those with waiting requests */
};

typedef struct Waiter {
    ThrottleGroup *group;
    ThrottleMember *member;
    ThrottleDirection direction;
    int64_t bytes;
    Coroutine *co;
    EventTimer *timer; /* of its loop; touched by that thread alone */

    /* Guarded by the group's lock: */
    enum {
        WAIT_IN_LINE,
        WAIT_FOR_TIME,
        WAIT_OVER
    } phase;
    bool awake;          /* runs, or is going to */
    int64_t deadline_ns; /* for timers; in WAIT_FOR_TIME */
    GList link;
} Waiter;

static GPtrArray *groups; /* of ThrottleGroup *, owned */
static int64_t (*clock_of_new_groups)(void) = event_loop_now_ns;

/* --- objects --- */

static ThrottleGroup *find(const char *id)
{
    for (guint i = 0; groups && i < groups->len; i++) {
        ThrottleGroup *group = g_ptr_array_index(groups, i);

        if (strcmp(group->id, id) == 0) {
            return group;
        }
    }
    return NULL;
}

static void group_free(void *opaque)
{
    ThrottleGroup *group = opaque;

    g_mutex_clear(&group->lock);
    g_free(group->id);
    g_free(group);
}

bool throttle_group_add(const char *id, const ThrottleConfig *config, GError **error)
{
    ThrottleGroup *group;

    g_assert(!find(id));
    if (!throttle_config_check(config, error)) {
        return false;
    }
    if (!groups) {
        groups = g_ptr_array_new_with_free_func(group_free);
    }
    group = g_new0(ThrottleGroup, 1);
    group->id = g_strdup(id);
    group->clock = clock_of_new_groups;
    g_mutex_init(&group->lock);
    throttle_state_init(&group->state, config, group->clock());
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        group->limited[i] = throttle_config_limits(config, i);
        g_queue_init(&group->lines[i]);
    }
    g_ptr_array_add(groups, group);
    return true;
}

bool throttle_group_delete(const char *id, GError **error)
{
    ThrottleGroup *group = find(id);

    if (!group) {
        merino_error(error, "object '%s' not found", id);
        return false;
    }
    if (group->members) {
        merino_error(error, "object '%s' is in use, can not be deleted", id);
        return false;
    }
    g_ptr_array_remove(groups, group);
    return true;
}

bool throttle_group_exists(const char *id)
{
    return find(id);
}

ThrottleGroup *throttle_group_find(const char *id, GError **error)
{
    ThrottleGroup *group = find(id);

    if (!group) {
        merino_error(error, "Throttle group '%s' does not exist", id);
    }
    return group;
}

void throttle_member_join(ThrottleMember *member, ThrottleGroup *group)
{
    g_assert(!member->group);
    group->members++;
    member->group = group;
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        g_queue_init(&member->waiting[i]);
        member->turn[i].data = member;
    }
}

void throttle_member_leave(ThrottleMember *member)
{
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        g_assert(g_queue_is_empty(&member->waiting[i]));
    }
    member->group->members--;
    member->group = NULL;
}

/* --- the lines; all with the lock held --- */

static void wake(Waiter *waiter)
{
    if (!waiter->awake) {
        waiter->awake = true;
        coroutine_wake(waiter->co);
    }
}

static void join_line(Waiter *waiter)
{
    ThrottleMember *member = waiter->member;
    ThrottleDirection direction = waiter->direction;

    if (g_queue_is_empty(&member->waiting[direction])) {
        g_queue_push_tail_link(&waiter->group->lines[direction], &member->turn[direction]);
    }
    waiter->link.data = waiter;
    g_queue_push_tail_link(&member->waiting[direction], &waiter->link);
}

static Waiter *line_head(ThrottleGroup *group, ThrottleDirection direction)
{
    ThrottleMember *member = g_queue_peek_head(&group->lines[direction]);

    return member ? g_queue_peek_head(&member->waiting[direction]) : NULL;
}

/* The member's first request begins, and the member goes to the end of the line. */
static void let_go(ThrottleGroup *group, Waiter *waiter)
{
    ThrottleDirection direction = waiter->direction;
    ThrottleMember *member = waiter->member;

    throttle_account(&group->state, direction, waiter->bytes);
    g_queue_unlink(&member->waiting[direction], &waiter->link);
    g_queue_unlink(&group->lines[direction], &member->turn[direction]);
    if (!g_queue_is_empty(&member->waiting[direction])) {
        g_queue_push_tail_link(&group->lines[direction], &member->turn[direction]);
    }
    waiter->phase = WAIT_OVER;
    wake(waiter);
}

/* One request begins, of the line that was not served last if it can be. */
static bool serve_one(ThrottleGroup *group, int64_t now_ns)
{
    for (int i = 1; i <= THROTTLE_DIRECTIONS; i++) {
        ThrottleDirection direction = (group->served + i) % THROTTLE_DIRECTIONS;
        Waiter *head = line_head(group, direction);

        if (head && throttle_wait_ns(&group->state, direction, now_ns) == 0) {
            group->served = direction;
            let_go(group, head);
            return true;
        }
    }
    return false;
}

static void serve(ThrottleGroup *group)
{
    int64_t now_ns = group->clock();

    while (serve_one(group, now_ns)) {
    }
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        Waiter *head = line_head(group, i);

        if (head) {
            head->deadline_ns = event_loop_now_ns() + throttle_wait_ns(&group->state, i, now_ns);
            if (head->phase == WAIT_IN_LINE) {
                head->phase = WAIT_FOR_TIME;
                wake(head);
            }
        }
    }
}

/* --- requests --- */

static void on_timer(void *opaque)
{
    Waiter *waiter = opaque;

    g_mutex_lock(&waiter->group->lock);
    if (waiter->phase != WAIT_OVER) {
        serve(waiter->group);
        if (waiter->phase != WAIT_OVER) {
            event_timer_set(waiter->timer, waiter->deadline_ns);
        }
    }
    g_mutex_unlock(&waiter->group->lock);
}

static void coroutine_fn wait_in_line(Waiter *waiter)
{
    ThrottleGroup *group = waiter->group;

    join_line(waiter);
    serve(group);
    while (waiter->phase != WAIT_OVER) {
        if (waiter->phase == WAIT_FOR_TIME) {
            waiter->timer = event_timer_new(event_loop_current(), on_timer, waiter);
            event_timer_set(waiter->timer, waiter->deadline_ns);
        }
        waiter->awake = false;
        g_mutex_unlock(&group->lock);
        coroutine_yield();
        g_mutex_lock(&group->lock);
    }
}

void coroutine_fn throttle_member_wait(ThrottleMember *member, ThrottleDirection direction,
                                       int64_t bytes)
{
    ThrottleGroup *group = member->group;
    Waiter waiter = {
        .group = group,
        .member = member,
        .direction = direction,
        .bytes = bytes,
        .co = coroutine_self(),
        .awake = true,
    };

    if (!group->limited[direction]) {
        return;
    }
    g_mutex_lock(&group->lock);
    if (member->open) {
        throttle_account(&group->state, direction, bytes);
    } else {
        wait_in_line(&waiter);
    }
    g_mutex_unlock(&group->lock);
    if (waiter.timer) {
        event_timer_free(waiter.timer);
    }
}

void throttle_member_open(ThrottleMember *member)
{
    ThrottleGroup *group = member->group;

    if (!group) {
        member->open = true;
        return;
    }
    g_mutex_lock(&group->lock);
    member->open = true;
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        while (!g_queue_is_empty(&member->waiting[i])) {
            let_go(group, g_queue_peek_head(&member->waiting[i]));
        }
    }
    serve(group); /* there may be other heads now */
    g_mutex_unlock(&group->lock);
}

void throttle_member_close(ThrottleMember *member)
{
    ThrottleGroup *group = member->group;

    if (!group) {
        member->open = false;
        return;
    }
    g_mutex_lock(&group->lock);
    member->open = false;
    g_mutex_unlock(&group->lock);
}

/* --- for tests --- */

void throttle_set_clock(int64_t (*clock)(void))
{
    clock_of_new_groups = clock ? clock : event_loop_now_ns;
}

void throttle_group_run(ThrottleGroup *group)
{
    g_mutex_lock(&group->lock);
    serve(group);
    g_mutex_unlock(&group->lock);
}

unsigned throttle_group_waiting(ThrottleGroup *group)
{
    unsigned n = 0;

    g_mutex_lock(&group->lock);
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        for (const GList *at = group->lines[i].head; at; at = at->next) {
            const ThrottleMember *member = at->data;

            n += g_queue_get_length((GQueue *)&member->waiting[i]);
        }
    }
    g_mutex_unlock(&group->lock);
    return n;
}
