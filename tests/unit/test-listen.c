/* SPDX-License-Identifier: MIT */
/*
 * Files of unix sockets: who may use them, and what becomes of those that are there before.
 */
#include "io-harness.h"
#include "net/connect.h"
#include "net/listen.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static char *path;

static NetListener *listen_at(int mode, GError **error)
{
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_UNIX, .u.q_unix.path = path };

    return net_listen(&address, mode, error);
}

/* Permissions of the file; 0 when there is none. */
static unsigned mode_now(void)
{
    struct stat status;

    return lstat(path, &status) < 0 ? 0 : status.st_mode & 07777;
}

static void check_mode(mode_t mask, int mode, unsigned expected)
{
    mode_t before = umask(mask);
    NetListener *listener = listen_at(mode, NULL);

    g_assert_nonnull(listener);
    g_assert_cmphex(mode_now(), ==, expected);
    net_listener_free(listener);
    g_assert_cmphex(mode_now(), ==, 0);
    umask(before);
}

static void test_mode(void)
{
    check_mode(022, NET_MODE_FROM_UMASK, 0755);
    check_mode(077, NET_MODE_FROM_UMASK, 0700);
    check_mode(022, 0600, 0600);
    check_mode(0, 0660, 0660);
    check_mode(077, 0666, 0666);
    check_mode(022, 0, 0);
}

static bool answers(void)
{
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_UNIX, .u.q_unix.path = path };
    int fd = net_connect(&address, NULL);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

/* A socket that a killed program has left. */
static void test_stale(void)
{
    NetListener *listener = listen_at(NET_MODE_FROM_UMASK, NULL);
    ino_t inode = listener->inode;

    close(g_array_index(listener->fds, int, 0));
    g_array_set_size(listener->fds, 0);
    listener->inode = 0; /* so that its file is not taken for its own */
    net_listener_free(listener);
    g_assert_cmphex(mode_now(), !=, 0);
    g_assert_false(answers());
    listener = listen_at(NET_MODE_FROM_UMASK, NULL);
    g_assert_nonnull(listener);
    g_assert_true(answers());
    g_assert_cmpuint(inode, !=, 0);
    net_listener_free(listener);
}

/* Who comes later takes the name over and keeps it when the earlier one goes. */
static void test_successor(void)
{
    NetListener *first = listen_at(NET_MODE_FROM_UMASK, NULL);
    NetListener *second = listen_at(NET_MODE_FROM_UMASK, NULL);

    net_listener_free(first);
    g_assert_true(answers());
    net_listener_free(second);
    g_assert_cmphex(mode_now(), ==, 0);
}

/* A file that is no socket is not touched. */
static void test_other_file(void)
{
    g_autofree char *content = NULL, *text = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_true(g_file_set_contents(path, "a disk", -1, NULL));
    g_assert_null(listen_at(NET_MODE_FROM_UMASK, &error));
    text = g_strdup_printf("Failed to unlink socket %s: It is a file of another kind", path);
    g_assert_cmpstr(error->message, ==, text);
    g_assert_true(g_file_get_contents(path, &content, NULL, NULL));
    g_assert_cmpstr(content, ==, "a disk");
    unlink(path);
}

/* --- inet --- */

static bool answers_at(const char *host, uint16_t port)
{
    g_autofree char *text = g_strdup_printf("%u", port);
    SocketAddress address = { .type = SOCKET_ADDRESS_TYPE_INET,
                              .u.inet = { .host = (char *)host, .port = text } };
    int fd = net_connect(&address, NULL);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

/* Both families have their port at the same place. */
static uint16_t port_of(const NetListener *listener)
{
    struct sockaddr_in6 at;
    socklen_t length = sizeof(at);

    g_assert_cmpint(
        getsockname(g_array_index(listener->fds, int, 0), (struct sockaddr *)&at, &length), ==, 0);
    return ntohs(at.sin6_port);
}

static NetListener *listen_inet(InetSocketAddress address, uint16_t port)
{
    g_autofree char *text = g_strdup_printf("%u", port);
    SocketAddress all = { .type = SOCKET_ADDRESS_TYPE_INET, .u.inet = address };
    NetListener *listener;

    all.u.inet.port = text;
    listener = net_listen(&all, NET_MODE_FROM_UMASK, NULL);
    g_assert_nonnull(listener);
    return listener;
}

/* The families that are served. */
static void check_families(InetSocketAddress address, bool ipv4, bool ipv6)
{
    NetListener *listener = listen_inet(address, 0);

    g_assert_cmpint(answers_at("127.0.0.1", port_of(listener)), ==, ipv4);
    g_assert_cmpint(answers_at("::1", port_of(listener)), ==, ipv6);
    net_listener_free(listener);
}

/* Where somebody has the port for IPv4, it is had for IPv6. */
static void check_taken(InetSocketAddress ipv4, InetSocketAddress any)
{
    NetListener *first = listen_inet(ipv4, 0);
    NetListener *second = listen_inet(any, port_of(first));

    g_assert_cmpuint(second->fds->len, ==, 1);
    g_assert_true(answers_at("::1", port_of(first)));
    net_listener_free(first);
    net_listener_free(second);
}

static void test_families(void)
{
    InetSocketAddress any = { .host = (char *)"::" }, only6 = any, not4 = any, both = any;
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 loopback = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    bool has_ipv6 = fd >= 0 && bind(fd, (struct sockaddr *)&loopback, sizeof(loopback)) == 0;

    if (fd >= 0) {
        close(fd);
    }
    if (!has_ipv6) {
        g_test_skip("this machine has no IPv6");
        return;
    }
    only6.has_ipv6 = only6.ipv6 = true;
    not4.has_ipv4 = true;
    both.has_ipv4 = both.ipv4 = both.has_ipv6 = both.ipv6 = true;
    check_families(any, true, true);
    check_families(both, true, true);
    check_families(only6, false, true);
    check_families(not4, false, true);
    check_taken((InetSocketAddress){ .host = (char *)"0.0.0.0" }, any);
    check_families((InetSocketAddress){ .host = (char *)"" }, true, true);
    check_families((InetSocketAddress){ .host = (char *)"127.0.0.1" }, true, false);
}

int main(int argc, char **argv)
{
    int ret;

    io_harness_init(&argc, &argv, false);
    path = temp_path("listen.sock");
    g_test_add_func("/listen/mode", test_mode);
    g_test_add_func("/listen/stale", test_stale);
    g_test_add_func("/listen/successor", test_successor);
    g_test_add_func("/listen/other-file", test_other_file);
    g_test_add_func("/listen/families", test_families);
    ret = io_harness_run();
    g_free(path);
    return ret;
}
