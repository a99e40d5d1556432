/* SPDX-License-Identifier: MIT */
/*
 * The `iothread` objects by id. Each owns its event loop; whoever runs requests on the loop counts
 * as a user, and an object with users is not deleted.
 */
#include "block/iothread.h"
#include "util/error.h"

typedef struct IoThread {
    char *id;
    EventLoop *loop;
    unsigned users;
} IoThread;

static GPtrArray *threads; /* of IoThread *, owned, in the order of their making */

static IoThread *find(const char *id)
{
    for (guint i = 0; threads && i < threads->len; i++) {
        IoThread *thread = g_ptr_array_index(threads, i);

        if (strcmp(thread->id, id) == 0) {
            return thread;
        }
    }
    return NULL;
}

static void thread_free(void *opaque)
{
    IoThread *thread = opaque;

    event_loop_free(thread->loop);
    g_free(thread->id);
    g_free(thread);
}

bool iothread_add(const char *id, GError **error)
{
    g_autofree char *thread_name = g_strdup_printf("IO %s", id);
    IoThread *thread;
    EventLoop *loop;

    if (find(id)) {
        merino_error(error, "attempt to add duplicate property '%s' to object (type 'container')",
                     id);
        return false;
    }
    loop = event_loop_new(thread_name, error);
    if (!loop) {
        return false;
    }
    if (!threads) {
        threads = g_ptr_array_new_with_free_func(thread_free);
    }
    thread = g_new0(IoThread, 1);
    thread->id = g_strdup(id);
    thread->loop = loop;
    g_ptr_array_add(threads, thread);
    return true;
}

bool iothread_delete(const char *id, GError **error)
{
    IoThread *thread = find(id);

    if (!thread) {
        merino_error(error, "object '%s' not found", id);
        return false;
    }
    if (thread->users) {
        merino_error(error, "object '%s' is in use, can not be deleted", id);
        return false;
    }
    g_ptr_array_remove(threads, thread);
    return true;
}

bool iothread_exists(const char *id)
{
    return find(id);
}

EventLoop *iothread_acquire(const char *id, GError **error)
{
    IoThread *thread = find(id);

    if (!thread) {
        merino_error(error, "iothread \"%s\" not found", id);
        return NULL;
    }
    thread->users++;
    return thread->loop;
}

void iothread_release(EventLoop *loop)
{
    for (guint i = 0; threads && i < threads->len; i++) {
        IoThread *thread = g_ptr_array_index(threads, i);

        if (thread->loop == loop) {
            thread->users--;
            return;
        }
    }
}

IOThreadInfoList *iothread_query(void)
{
    IOThreadInfoList *list = g_new0(IOThreadInfoList, 1);

    for (guint i = 0; threads && i < threads->len; i++) {
        const IoThread *thread = g_ptr_array_index(threads, i);
        IOThreadInfo *info = g_new0(IOThreadInfo, 1);

        info->id = g_strdup(thread->id);
        info->thread_id = event_loop_thread_id(thread->loop);
        io_thread_info_list_append(list, info);
    }
    return list;
}
