/* SPDX-License-Identifier: MIT */
#include "address.h"

#include "util/error.h"

#include <stddef.h>
#include <string.h>

bool net_is_abstract(const UnixSocketAddress *address)
{
    return address->has_abstract && address->abstract;
}

bool net_unix_address(const UnixSocketAddress *address, struct sockaddr_un *ret_un,
                      socklen_t *ret_length, GError **error)
{
    size_t length = strlen(address->path);
    size_t skip = net_is_abstract(address) ? 1 : 0;

    *ret_un = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (length + skip > sizeof(ret_un->sun_path)) {
        merino_error(error, "UNIX socket path '%s' is too long", address->path);
        merino_error_hint(error, "Path must be less than %zu bytes", sizeof(ret_un->sun_path));
        return false;
    }
    if (!length) {
        merino_error(error, "UNIX socket path is empty");
        return false;
    }
    memcpy(ret_un->sun_path + skip, address->path, length);
    *ret_length = sizeof(*ret_un);
    if (skip && !(address->has_tight && !address->tight)) {
        *ret_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + skip + length);
    }
    return true;
}

/* Which families the options leave: AF_UNSPEC for both. */
static bool choose_family(const InetSocketAddress *address, int *ret_family, GError **error)
{
    bool want4 = address->has_ipv4 && address->ipv4, want6 = address->has_ipv6 && address->ipv6;
    bool not4 = address->has_ipv4 && !address->ipv4, not6 = address->has_ipv6 && !address->ipv6;

    if (not4 && not6) {
        merino_error(error, "Cannot disable IPv4 and IPv6 at same time");
        return false;
    }
    *ret_family = AF_UNSPEC;
    if (want6 != want4 || not4 || not6) {
        *ret_family = want6 || not4 ? AF_INET6 : AF_INET;
    }
    return true;
}

bool net_wants_both(const InetSocketAddress *address)
{
    return (!address->has_ipv4 && !address->has_ipv6) ||
           (address->has_ipv4 && address->ipv4 && address->has_ipv6 && address->ipv6);
}

struct addrinfo *net_resolve(const InetSocketAddress *address, int flags, GError **error)
{
    struct addrinfo hints = { .ai_flags = flags, .ai_socktype = SOCK_STREAM };
    struct addrinfo *found = NULL;
    int ret;

    if (!choose_family(address, &hints.ai_family, error)) {
        return NULL;
    }
    if (address->has_numeric && address->numeric) {
        hints.ai_flags |= AI_NUMERICHOST | AI_NUMERICSERV;
    }
    ret = getaddrinfo(*address->host ? address->host : NULL, *address->port ? address->port : "0",
                      &hints, &found);
    if (ret) {
        merino_error(error, "address resolution failed for %s:%s: %s", address->host, address->port,
                     gai_strerror(ret));
        return NULL;
    }
    return found;
}
