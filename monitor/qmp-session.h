/* SPDX-License-Identifier: MIT */
/*
 * A QMP session: one client, from the greeting to the end of the stream.
 *
 * States (the table is in qmp-session.c): a session begins negotiating, when only qmp_capabilities
 * is accepted and no events are sent; then it is running; closing begins with the end of the
 * input or a lost client, and ends when what was answered is sent. A reply is one line that ends
 * in "\r\n", or several when the session is pretty.
 *
 * Bounds. While more than QMP_BACKLOG_MAX bytes wait to be sent, no command of the session is taken
 * and nothing is read, so a client that does not read only waits for itself, and one reply at
 * most goes beyond the bound. Events cannot wait: when they let the backlog grow to
 * QMP_EVENTS_MAX, the session is closed, because a stream with holes would leave its client waiting
 * for an event that was dropped. A session handles a few messages a turn of the main loop, so that
 * a client that sends many at once does not keep others waiting.
 *
 * Events that a command causes are held until its reply is on its way, in every session; commands
 * whose events come first call qmp_events_flush() (monitor/events.h).
 *
 * Main thread, in GLib's main context. No function here runs a main loop.
 */
#ifndef MERINO_MONITOR_QMP_SESSION_H
#define MERINO_MONITOR_QMP_SESSION_H

#include "qapi/dispatch.h"

#define QMP_BACKLOG_MAX (256 << 10)
#define QMP_EVENTS_MAX  (32 << 20)

typedef struct QmpSession QmpSession;

/* The session is over and has been freed; called from the main context. The descriptors are the
 * caller's to close. */
typedef void QmpSessionEnded(void *opaque);

typedef struct QmpSessionOptions {
    int in_fd;
    int out_fd; /* may be the same */
    bool pretty;
    const QapiCommand *commands;
    QmpSessionEnded *ended;
    void *opaque;
} QmpSessionOptions;

/* Begin a session: the greeting is sent. It ends by itself. */
QmpSession *qmp_session_new(const QmpSessionOptions *options);

/* Free the session at once, without telling the owner; what is still to be sent gets until
 * `deadline_us` (g_get_monotonic_time()). NULL is ignored. */
void qmp_session_free(QmpSession *session, int64_t deadline_us);

/* Send an event to every session that is running. */
void qmp_sessions_broadcast(const json_t *event);

/* Take no command any more in any session, from now on; replies and events still go out. */
void qmp_sessions_stop(void);

#endif
