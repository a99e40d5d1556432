/* SPDX-License-Identifier: MIT */
/*
 * Passwords that other objects need: the object `secret`, by id.
 *
 * A secret is read when it is made and wiped when it is deleted. Whoever needs one takes a copy, so
 * that it may be deleted at any time. Control plane. Errors are in QEMU's words.
 */
#ifndef MERINO_NET_SECRET_H
#define MERINO_NET_SECRET_H

#include "qapi/qapi-types.h"

/* Nobody else has the id. */
bool secret_add(const char *id, const SecretProperties *properties, GError **error);
bool secret_delete(const char *id, GError **error);
bool secret_exists(const char *id);

/* A copy of a secret that is a text; NULL and an error when there is none of that id, or it is no
 * text. */
char *secret_copy_text(const char *id, GError **error);
void secret_free_text(char *text); /* NULL is ignored */

#endif
