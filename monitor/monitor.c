/* SPDX-License-Identifier: MIT */
#include "monitor/monitor.h"

#include "monitor/chardev.h"
#include "monitor/events.h"
#include "program.h"
#include "qapi/dispatch.h"
#include "qapi/qapi-events.h"
#include "qmp-session.h"
#include "util/error.h"

#define CLOSE_TIMEOUT_US G_USEC_PER_SEC

typedef struct Monitor {
    Chardev *chardev;
    bool pretty;
    QmpSession *session; /* NULL: no client */
} Monitor;

static GList *monitors;
static const MonitorProgram *program;
static bool shutting_down;

void monitor_init(const MonitorProgram *the_program)
{
    program = the_program;
    qmp_events_init();
}

static void on_session_ended(void *opaque)
{
    Monitor *monitor = opaque;

    monitor->session = NULL;
    chardev_disconnect(monitor->chardev);
}

static void on_connected(void *opaque, int in_fd, int out_fd)
{
    Monitor *monitor = opaque;
    QmpSessionOptions options = {
        .in_fd = in_fd,
        .out_fd = out_fd,
        .pretty = monitor->pretty,
        .commands = qapi_commands,
        .ended = on_session_ended,
        .opaque = monitor,
    };

    monitor->session = qmp_session_new(&options);
}

bool monitor_add(const MonitorOptions *options, GError **error)
{
    Chardev *chardev = chardev_find(options->chardev);
    Monitor *monitor;

    if (!chardev) {
        merino_error(error, "chardev \"%s\" not found", options->chardev);
        return false;
    }
    if (options->has_mode && options->mode != MONITOR_MODE_CONTROL) {
        merino_error(error, "Only QMP is supported");
        return false;
    }
    monitor = g_new0(Monitor, 1);
    monitor->chardev = chardev;
    monitor->pretty = options->has_pretty && options->pretty;
    if (!chardev_attach(chardev, on_connected, monitor, error)) {
        g_free(monitor);
        return false;
    }
    monitors = g_list_append(monitors, monitor);
    return true;
}

void monitor_begin_shutdown(ShutdownCause cause)
{
    if (shutting_down) {
        return;
    }
    shutting_down = true;
    qmp_sessions_stop();
    if (program->announces_shutdown) {
        qapi_event_send_shutdown(false, cause);
    }
}

void monitor_quit(void)
{
    monitor_begin_shutdown(SHUTDOWN_CAUSE_HOST_QMP_QUIT);
    program->quit();
}

void monitor_close_all(void)
{
    int64_t deadline_us = g_get_monotonic_time() + CLOSE_TIMEOUT_US;

    for (GList *entry = monitors; entry; entry = entry->next) {
        Monitor *monitor = entry->data;

        qmp_session_free(monitor->session, deadline_us);
    }
    g_list_free_full(monitors, g_free);
    monitors = NULL;
    chardev_close_all();
}
