/* SPDX-License-Identifier: MIT */
/*
 * Who is let in: the objects `authz-simple` and `authz-list`, by id.
 *
 * They know identities as texts only, whatever those come from. Control plane. Each user of an
 * object holds it, and an object with users is not deleted.
 */
#ifndef MERINO_NET_AUTHZ_H
#define MERINO_NET_AUTHZ_H

#include "qapi/qapi-types.h"

typedef struct Authz Authz;

/* Nobody else has the id. */
void authz_add_simple(const char *id, const AuthZSimpleProperties *properties);
void authz_add_list(const char *id, const AuthZListProperties *properties);
bool authz_delete(const char *id, GError **error); /* refused while in use */
bool authz_exists(const char *id);

/* Hold an object; NULL and an error when there is none of that id. */
Authz *authz_acquire(const char *id, GError **error);
void authz_release(Authz *authz); /* NULL is ignored */

bool authz_allows(const Authz *authz, const char *identity);

#endif
