/* SPDX-License-Identifier: MIT */
/*
 * merino-storage-daemon: the block layer as a program of its own.
 *
 * It starts in four steps: the process (background, signals), the parts of the block layer, what
 * the command line describes, and only then the pid file and the parent's release, so that whoever
 * waits for either finds everything served. It ends, by a signal or by the command quit, in
 * the opposite order: no further commands, exports, jobs, nodes (which flushes them), monitors, pid
 * file.
 */
#include "block/builtins.h"
#include "block/export.h"
#include "block/job.h"
#include "block/nbd.h"
#include "block/node.h"
#include "monitor/monitor.h"
#include "options.h"
#include "process.h"
#include "util/event-loop.h"

#include <glib-unix.h>
#include <signal.h>
#include <stdlib.h>

static GMainLoop *main_loop;

static void quit(void)
{
    g_main_loop_quit(main_loop);
}

static const MonitorProgram program = { .quit = quit };

static gboolean on_signal(gpointer opaque)
{
    monitor_begin_shutdown(SHUTDOWN_CAUSE_HOST_SIGNAL);
    quit();
    return G_SOURCE_CONTINUE;
}

static void watch_signals(void)
{
    g_unix_signal_add(SIGTERM, on_signal, NULL);
    g_unix_signal_add(SIGINT, on_signal, NULL);
    g_unix_signal_add(SIGHUP, on_signal, NULL);
}

/* What libraries have to say goes to standard error, in the form of all other messages. */
static void on_log(const char *domain, GLogLevelFlags level, const char *message, gpointer opaque)
{
    const char *word = level & G_LOG_LEVEL_ERROR      ? "fatal"
                       : level & G_LOG_LEVEL_CRITICAL ? "internal error"
                       : level & G_LOG_LEVEL_WARNING  ? "warning"
                                                      : "info";

    if (!(level & (G_LOG_LEVEL_INFO | G_LOG_LEVEL_DEBUG))) {
        g_printerr("%s: %s: %s\n", g_get_prgname(), word, message);
    }
}

static void report(const GError *error)
{
    g_printerr("%s: %s\n", g_get_prgname(), error->message);
}

/* Everything that the command line describes; false once an error is printed. */
static bool start(int argc, char **argv, const ProcessOptions *process)
{
    g_autoptr(GError) error = NULL;

    if (!options_apply(argc, argv, process)) {
        return false;
    }
    watch_signals();
    if ((process->pidfile && !process_write_pidfile(process->pidfile, &error)) ||
        !process_detach(&error)) {
        report(error);
        return false;
    }
    return true;
}

static void stop(void)
{
    export_close_all_type(BLOCK_EXPORT_TYPE__MAX);
    nbd_server_stop(NULL);
    job_cancel_all();
    node_close_all();
    monitor_close_all();
    process_remove_pidfile();
}

int main(int argc, char **argv)
{
    g_autofree char *name = g_path_get_basename(argv[0]);
    g_autoptr(GError) error = NULL;
    ProcessOptions process;
    GSource *loop_source;
    bool ok;

    argv[0] = name; /* for the messages of getopt */
    g_set_prgname(name);
    g_log_set_default_handler(on_log, NULL);
    process = options_check(argc, argv);
    if (process.daemonize && !process_daemonize(&error)) {
        report(error);
        return EXIT_FAILURE;
    }
    signal(SIGPIPE, SIG_IGN);
    main_loop = g_main_loop_new(NULL, false);
    block_builtins_register();
    monitor_init(&program);
    loop_source = event_loop_attach(event_loop_main());

    ok = start(argc, argv, &process);
    if (ok) {
        g_main_loop_run(main_loop);
    }
    stop();

    g_source_destroy(loop_source);
    g_source_unref(loop_source);
    g_main_loop_unref(main_loop);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
