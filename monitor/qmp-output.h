/* SPDX-License-Identifier: MIT */
/*
 * Output of one QMP session: bytes go straight to the descriptor while it takes them, and into a
 * queue while it does not. The queue never blocks the caller and has no bound of its own; whoever
 * writes looks at qmp_output_pending() and stops (qmp-session.c says when).
 *
 * The descriptor's flags are left alone, because standard output is shared with other programs:
 * sockets are written to with MSG_DONTWAIT, anything else only after poll(2) has said that it takes
 * some bytes, and no more than a pipe is sure to take then. The program ignores SIGPIPE.
 *
 * Main thread.
 */
#ifndef MERINO_MONITOR_QMP_OUTPUT_H
#define MERINO_MONITOR_QMP_OUTPUT_H

#include <glib.h>
#include <stdbool.h>

typedef struct QmpOutput QmpOutput;

/* Called from the main context whenever the queue became shorter, or writing failed for good. Not
 * called from within the functions below. */
typedef void QmpOutputProgress(void *opaque);

/* The descriptor stays the caller's. */
QmpOutput *qmp_output_new(int fd, QmpOutputProgress *progress, void *opaque);
void qmp_output_free(QmpOutput *output);

/* Write, or queue what cannot be written now. Nothing happens once writing has failed. */
void qmp_output_write(QmpOutput *output, const char *bytes, size_t len);

/* Bytes in the queue. */
size_t qmp_output_pending(const QmpOutput *output);

/* Whether the peer is gone. What was pending is forgotten then. */
bool qmp_output_failed(const QmpOutput *output);

/* Give the peer up, as if it were gone. */
void qmp_output_abandon(QmpOutput *output);

/* Wait until nothing is pending, or until `deadline_us` (g_get_monotonic_time()). */
void qmp_output_drain(QmpOutput *output, int64_t deadline_us);

#endif
