/* SPDX-License-Identifier: MIT */
/*
 * Event loops: where coroutines live and I/O is done.
 *
 * There is one main loop, of the thread that first calls event_loop_main() (the control plane),
 * and any number of I/O threads, each with one loop. A loop owns an io_uring, a queue of
 * callbacks that any thread may add to, ready coroutines and timers. Where the kernel refuses
 * io_uring (or MERINO_NO_IO_URING is set in the environment) file I/O runs in a pool of worker
 * threads, and readiness is polled.
 *
 * The main loop is driven in two ways: by GLib, through event_loop_attach(), and by nested
 * event_loop_poll() calls where the control plane has to wait for requests (drain). A nested poll
 * runs this loop's callbacks, coroutines and timers but no GLib source, so no QMP command starts
 * inside another.
 *
 * I/O functions return a count or -errno like the system calls they stand for, without signals
 * (EINTR is retried). Submissions of one iteration go to the kernel together.
 */
#ifndef MERINO_UTIL_EVENT_LOOP_H
#define MERINO_UTIL_EVENT_LOOP_H

#include "util/coroutine.h"

#include <sys/uio.h>

typedef void EventLoopFn(void *opaque);
typedef struct EventTimer EventTimer;

/* The control plane's loop; made by the first call, whose thread becomes the main thread. It does
 * not survive fork(): a program that goes to the background does so before. */
EventLoop *event_loop_main(void);

/* The loop of the calling thread; NULL on a thread that has none (a worker). */
EventLoop *event_loop_current(void);

/* Start a thread with a loop. `name` is the thread's name, as far as the kernel keeps it. */
EventLoop *event_loop_new(const char *name, GError **error);

/* Stop the thread once its callbacks and ready coroutines have run, join it, free the loop. No
 * coroutine of it may be waiting and no timer be armed. Main thread; NULL is ignored; not for the
 * main loop. */
void event_loop_free(EventLoop *loop);

/* The kernel's id of the loop's thread. */
int64_t event_loop_thread_id(const EventLoop *loop);

/* Whether file I/O of this loop goes through io_uring. */
bool event_loop_has_uring(const EventLoop *loop);

/* Let GLib's default main context drive the main loop; returns the source, which the caller
 * destroys and unrefs. */
GSource *event_loop_attach(EventLoop *loop);

/* Run what is ready; when `block`, first wait until something is. Home thread, outside
 * coroutines. Returns whether anything ran. */
bool event_loop_poll(EventLoop *loop, bool block);

/* Poll until `*done`, which a coroutine or callback of this loop, or another thread followed by
 * event_loop_notify(), sets. Home thread, outside coroutines. */
void event_loop_poll_until(EventLoop *loop, const atomic_bool *done);

/* Run `fn(opaque)` once on the loop's thread, soon, in the order of the calls. Any thread. */
void event_loop_call(EventLoop *loop, EventLoopFn *fn, void *opaque);

/* Make a blocking event_loop_poll() of `loop` return. Any thread. */
void event_loop_notify(EventLoop *loop);

/* Nanoseconds of CLOCK_MONOTONIC. */
int64_t event_loop_now_ns(void);
/* For tests: it is so much later than it was. A loop that waits already does not hear of it. */
void event_loop_advance_clock(int64_t ns);

/* One-shot timers of a loop; all calls on its thread. Setting an armed timer moves it. */
EventTimer *event_timer_new(EventLoop *loop, EventLoopFn *fn, void *opaque);
void event_timer_free(EventTimer *timer);
void event_timer_set(EventTimer *timer, int64_t deadline_ns);
void event_timer_cancel(EventTimer *timer);

/*
 * File I/O on the calling coroutine's loop. `offset` in bytes. Counts may be short, as the system
 * call's. `iov` must stay valid until the call returns. What the page cache can answer at once may
 * be done without a yield.
 */
ssize_t coroutine_fn co_io_preadv(int fd, const struct iovec *iov, int niov, int64_t offset);
ssize_t coroutine_fn co_io_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset,
                                   int rw_flags);
int coroutine_fn co_io_fdatasync(int fd);
int coroutine_fn co_io_fallocate(int fd, int mode, int64_t offset, int64_t bytes);

/* Wait until the descriptor is ready for any of the poll(2) `events`; returns revents or -errno.
 * A socket's waiter is woken by shutdown(2) from any thread. */
int coroutine_fn co_io_poll(int fd, short events);

/* Receive at least one byte / send the whole vector over a non-blocking socket. recv returns 0 at
 * the end of the stream; send returns 0 or -errno and may alter `iov`. */
ssize_t coroutine_fn co_io_recv(int fd, const struct iovec *iov, int niov);
int coroutine_fn co_io_send(int fd, struct iovec *iov, int niov);

/*
 * Receiving from a peer that sends a request, takes the reply and sends the next. A watch stays in
 * the kernel from one wait to the next, and rouses the loop's processor already when the peer takes
 * what it was sent (a unix socket tells, by having room again): so it is awake when the next
 * request comes. Worth its price only with such a peer. NULL where the loop has no io_uring. One
 * coroutine uses a watch, always on the same loop, and frees it before the socket is closed.
 */
typedef struct SocketWatch SocketWatch;
SocketWatch *socket_watch_new(int fd);
ssize_t coroutine_fn socket_watch_recv(SocketWatch *watch, const struct iovec *iov, int niov);
void coroutine_fn socket_watch_free(SocketWatch *watch);

/* Run a blocking function on a worker thread and return what it returns. */
typedef int WorkerFn(void *opaque);
int coroutine_fn co_run_in_worker(WorkerFn *fn, void *opaque);

/*
 * Run `fn(opaque)` on the control plane and wait for its end: called by GLib's main context on the
 * main thread, outside of coroutines and never inside a nested event_loop_poll(). So it may drain,
 * open and close nodes. For coroutines of the main loop whose end nobody polls for: whoever waits
 * for one of these lets GLib's main context run.
 */
void coroutine_fn co_run_control(EventLoopFn *fn, void *opaque);

#endif
