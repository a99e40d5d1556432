/* SPDX-License-Identifier: MIT */
#include "monitor/chardev.h"

#include "chardev-options.h"
#include "net/connect.h"
#include "net/listen.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

struct Chardev {
    ChardevOptions *options;
    NetListener *listening; /* of a server; else NULL */
    GArray *accept_ids;     /* guint: their sources, while there is no connection */
    int in_fd, out_fd;      /* -1: not connected */
    guint connected_id;     /* a source: the user is about to learn of the connection */
    ChardevConnected *connected;
    void *opaque;
};

static GList *chardevs;

const char *const *chardev_kinds(void)
{
    return chardev_kind_names;
}

Chardev *chardev_find(const char *id)
{
    for (GList *entry = chardevs; entry; entry = entry->next) {
        Chardev *chardev = entry->data;

        if (g_str_equal(chardev->options->id, id)) {
            return chardev;
        }
    }
    return NULL;
}

bool chardev_uses_stdio(void)
{
    for (GList *entry = chardevs; entry; entry = entry->next) {
        Chardev *chardev = entry->data;

        if (chardev->options->kind == CHARDEV_STDIO) {
            return true;
        }
    }
    return false;
}

/* --- connections of a server --- */

static void stop_accepting(Chardev *chardev)
{
    for (guint i = 0; i < chardev->accept_ids->len; i++) {
        g_source_remove(g_array_index(chardev->accept_ids, guint, i));
    }
    g_array_set_size(chardev->accept_ids, 0);
}

static void set_connection(Chardev *chardev, int in_fd, int out_fd)
{
    int on = 1;

    chardev->in_fd = in_fd;
    chardev->out_fd = out_fd;
    if (chardev->options->nodelay) {
        /* Nothing is lost where it is not a TCP socket. */
        (void)setsockopt(in_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
}

/* Take a client that waits; false when there is none (any more). */
static bool accept_client(Chardev *chardev, int listening)
{
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) {
        return false;
    }
    set_connection(chardev, fd, fd);
    return true;
}

static gboolean on_client(gint listening, GIOCondition condition, gpointer opaque)
{
    Chardev *chardev = opaque;

    if (accept_client(chardev, listening)) {
        stop_accepting(chardev);
        chardev->connected(chardev->opaque, chardev->in_fd, chardev->out_fd);
    }
    return G_SOURCE_CONTINUE;
}

static void start_accepting(Chardev *chardev)
{
    for (guint i = 0; i < chardev->listening->fds->len; i++) {
        guint id = g_unix_fd_add(g_array_index(chardev->listening->fds, int, i), G_IO_IN, on_client,
                                 chardev);

        g_array_append_val(chardev->accept_ids, id);
    }
}

/* Block until the first client is there. */
static void wait_for_client(Chardev *chardev)
{
    guint n = chardev->listening->fds->len;
    g_autofree struct pollfd *ready = g_new0(struct pollfd, n);

    g_message("waiting for a client of chardev '%s'", chardev->options->id);
    for (guint i = 0; i < n; i++) {
        ready[i].fd = g_array_index(chardev->listening->fds, int, i);
        ready[i].events = POLLIN;
    }
    while (chardev->in_fd < 0) {
        (void)poll(ready, n, -1);
        for (guint i = 0; i < n && chardev->in_fd < 0; i++) {
            (void)(ready[i].revents && accept_client(chardev, ready[i].fd));
        }
    }
}

/* --- life --- */

static void chardev_free(Chardev *chardev)
{
    stop_accepting(chardev);
    g_array_free(chardev->accept_ids, true);
    if (chardev->connected_id) {
        g_source_remove(chardev->connected_id);
    }
    if (chardev->options->kind != CHARDEV_STDIO && chardev->in_fd >= 0) {
        close(chardev->in_fd);
    }
    net_listener_free(chardev->listening);
    chardev_options_free(chardev->options);
    g_free(chardev);
}

static bool open_socket(Chardev *chardev, GError **error)
{
    const ChardevOptions *options = chardev->options;
    int fd;

    if (options->server) {
        chardev->listening = net_listen(options->address, NET_MODE_FROM_UMASK, error);
        if (chardev->listening && options->wait) {
            wait_for_client(chardev);
        }
        return chardev->listening != NULL;
    }
    fd = net_connect(options->address, error);
    if (fd < 0) {
        return false;
    }
    set_connection(chardev, fd, fd);
    return true;
}

static bool chardev_open(Chardev *chardev, GError **error)
{
    if (chardev->options->kind == CHARDEV_STDIO) {
        set_connection(chardev, STDIN_FILENO, STDOUT_FILENO);
        return true;
    }
    return open_socket(chardev, error);
}

bool chardev_add(const char *text, GError **error)
{
    g_autoptr(ChardevOptions) options = chardev_options_parse(text, error);
    Chardev *chardev;
    bool ok;

    if (!options) {
        return false;
    }
    chardev = g_new0(Chardev, 1);
    chardev->options = g_steal_pointer(&options);
    chardev->accept_ids = g_array_new(false, false, sizeof(guint));
    chardev->in_fd = -1;
    chardev->out_fd = -1;
    if (chardev->options->kind == CHARDEV_STDIO && chardev_uses_stdio()) {
        merino_error(error, "cannot use stdio by multiple character devices");
        ok = false;
    } else if (chardev_find(chardev->options->id)) {
        merino_error(error, "Chardev with id '%s' already exists", chardev->options->id);
        ok = false;
    } else {
        ok = chardev_open(chardev, error);
    }
    if (!ok) {
        chardev_free(chardev);
        return false;
    }
    chardevs = g_list_append(chardevs, chardev);
    return true;
}

void chardev_close_all(void)
{
    for (GList *entry = chardevs; entry; entry = entry->next) {
        chardev_free(entry->data);
    }
    g_list_free(chardevs);
    chardevs = NULL;
}

/* --- use --- */

static gboolean tell_connected(gpointer opaque)
{
    Chardev *chardev = opaque;

    chardev->connected_id = 0;
    chardev->connected(chardev->opaque, chardev->in_fd, chardev->out_fd);
    return G_SOURCE_REMOVE;
}

bool chardev_attach(Chardev *chardev, ChardevConnected *connected, void *opaque, GError **error)
{
    if (chardev->connected) {
        merino_error(error, "Device '%s' is in use", chardev->options->id);
        return false;
    }
    chardev->connected = connected;
    chardev->opaque = opaque;
    if (chardev->in_fd >= 0) {
        chardev->connected_id = g_idle_add_full(G_PRIORITY_DEFAULT, tell_connected, chardev, NULL);
    } else if (chardev->listening) {
        start_accepting(chardev);
    }
    return true;
}

void chardev_disconnect(Chardev *chardev)
{
    if (chardev->in_fd >= 0 && chardev->options->kind != CHARDEV_STDIO) {
        close(chardev->in_fd);
    }
    chardev->in_fd = -1;
    chardev->out_fd = -1;
    if (chardev->listening) {
        start_accepting(chardev);
    }
}
