/* SPDX-License-Identifier: MIT */
/*
 * From addresses as the schema has them to those of the system.
 */
#ifndef MERINO_NET_ADDRESS_H
#define MERINO_NET_ADDRESS_H

#include "qapi/qapi-types.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>

bool net_is_abstract(const UnixSocketAddress *address);

/* An abstract name begins with a zero byte and, unless "tight", is padded with more. */
bool net_unix_address(const UnixSocketAddress *address, struct sockaddr_un *ret_un,
                      socklen_t *ret_length, GError **error);

/* Whether no family of addresses is preferred to the other. */
bool net_wants_both(const InetSocketAddress *address);

/* All that a host and port stand for, at least one; free with freeaddrinfo(). `flags` are
 * getaddrinfo()'s. Blocks while names are looked up. */
struct addrinfo *net_resolve(const InetSocketAddress *address, int flags, GError **error);

#endif
