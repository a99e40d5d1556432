/* SPDX-License-Identifier: MIT */
/*
 * A kernel that is short of memory: now and then it takes nothing of what io_uring hands it. That
 * is late then, but nobody sleeps over it.
 */
#include "util/event-loop.h"

#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <unistd.h>

static struct io_uring *last_ring;
static int refusals; /* so many to come */
static bool slept_over_it;

/* Stands in front of liburing's. */
int io_uring_submit(struct io_uring *ring)
{
    static int (*real)(struct io_uring * ring);

    last_ring = ring;
    if (refusals > 0 && io_uring_sq_ready(ring)) {
        refusals--;
        return -EAGAIN;
    }
    if (!real) {
        real = (__typeof__(real))dlsym(RTLD_NEXT, "io_uring_submit");
    }
    return real(ring);
}

/* What GLib waits in. */
static gint poll_and_look(GPollFD *fds, guint n, gint timeout)
{
    if (timeout != 0 && io_uring_sq_ready(last_ring)) {
        slept_over_it = true;
        timeout = 0;
    }
    return g_poll(fds, n, timeout);
}

static int open_temporary(void)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp(NULL, &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    unlink(path);
    return fd;
}

typedef struct Work {
    int fd;
    int left;
} Work;

static void sync_file(void *opaque)
{
    Work *work = opaque;

    g_assert_cmpint(co_io_fdatasync(work->fd), ==, 0);
    work->left--;
}

static void glib_does_not_sleep_over_refusals(void)
{
    EventLoop *loop = event_loop_main();
    Work work = { .fd = open_temporary() };
    GSource *source = event_loop_attach(loop);

    if (!event_loop_has_uring(loop)) {
        g_test_skip("the kernel offers no io_uring");
    } else {
        g_main_context_set_poll_func(NULL, poll_and_look);
        for (int i = 0; i < 30; i++) {
            work.left = 3;
            for (int k = 0; k < 3; k++) {
                coroutine_start(sync_file, &work);
            }
            refusals = 1 + i % 3;
            while (work.left) {
                g_main_context_iteration(NULL, TRUE);
            }
        }
        g_main_context_set_poll_func(NULL, NULL);
        g_assert_false(slept_over_it);
        g_assert_cmpint(refusals, ==, 0);
    }
    close(work.fd);
    g_source_destroy(source);
    g_source_unref(source);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/event-loop-refusals/glib", glib_does_not_sleep_over_refusals);
    return g_test_run();
}
