/* SPDX-License-Identifier: MIT */
/*
 * What happens when the image turns out to be damaged while it is open.
 *
 * A fatal fault sets the corrupt bit, and from then on nothing is written. A fault that only keeps
 * a request from succeeding is told once.
 */
#include "qapi/qapi-events.h"
#include "runtime.h"
#include "util/event-loop.h"

typedef struct Report {
    char *node_name;
    char *message;
    int64_t offset, bytes;
    bool fatal;
} Report;

/* On the main loop, where events leave. */
static void send_report(void *opaque)
{
    Report *report = opaque;

    qapi_event_send_block_image_corrupted("", report->node_name, report->message,
                                          report->offset >= 0, report->offset, report->bytes >= 0,
                                          report->bytes, report->fatal);
    g_free(report->node_name);
    g_free(report->message);
    g_free(report);
}

void coroutine_fn qcow2_mark_corrupt(Qcow2 *q, bool fatal, int64_t host, int64_t bytes,
                                     const char *format, ...)
{
    Report *report;
    va_list args;

    fatal = fatal && !q->node->read_only;
    if (atomic_load(&q->corrupt) || (!fatal && atomic_exchange(&q->signaled, true)) ||
        (fatal && atomic_exchange(&q->corrupt, true))) {
        return;
    }
    report = g_new(Report, 1);
    va_start(args, format);
    *report = (Report){ .node_name = g_strdup(q->node->node_name),
                        .message = g_strdup_vprintf(format, args),
                        .offset = host,
                        .bytes = bytes,
                        .fatal = fatal };
    va_end(args);
    g_warning(fatal ? "qcow2: Marking image as corrupt: %s; further corruption events will be "
                      "suppressed"
                    : "qcow2: Image is corrupt: %s; further non-fatal corruption events will be "
                      "suppressed",
              report->message);
    event_loop_call(event_loop_main(), send_report, report);
    if (fatal && q->header.version >= 3) {
        qcow2_set_features(q, q->header.incompatible | QCOW2_INCOMPAT_CORRUPT, q->header.autoclear,
                           NULL);
    }
}
