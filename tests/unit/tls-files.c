/* SPDX-License-Identifier: MIT */
#include "tls-files.h"

#include "io-harness.h"

#include <gnutls/abstract.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>

#define DAY (24 * 60 * 60)

static void succeed(int ret)
{
    g_assert_cmpint(ret, >=, 0);
}

static void set_extensions(gnutls_x509_crt_t cert, const TestCertInfo *info)
{
    if (!info->no_constraints) {
        succeed(gnutls_x509_crt_set_basic_constraints(cert, info->is_ca, -1));
    }
    if (info->usage) {
        succeed(gnutls_x509_crt_set_key_usage(cert, info->usage));
    }
    if (info->purpose) {
        succeed(gnutls_x509_crt_set_key_purpose_oid(cert, info->purpose, info->critical));
    }
}

static GPtrArray *all; /* what was made, so that it counts as still in use */

const TestCert *make_cert(const TestCertInfo *info)
{
    static uint8_t serial;
    TestCert *made = g_new0(TestCert, 1);
    const TestCert *signer = info->signer ? info->signer : made;
    time_t now = time(NULL);

    if (!all) {
        all = g_ptr_array_new();
    }
    g_ptr_array_add(all, made);
    serial++;
    succeed(gnutls_x509_privkey_init(&made->key));
    succeed(gnutls_x509_privkey_generate(made->key, GNUTLS_PK_ECDSA,
                                         GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0));
    succeed(gnutls_x509_crt_init(&made->cert));
    succeed(gnutls_x509_crt_set_version(made->cert, 3));
    succeed(gnutls_x509_crt_set_serial(made->cert, &serial, sizeof(serial)));
    succeed(gnutls_x509_crt_set_dn_by_oid(made->cert, GNUTLS_OID_X520_COMMON_NAME, 0, info->name,
                                          (unsigned)strlen(info->name)));
    succeed(gnutls_x509_crt_set_key(made->cert, made->key));
    succeed(gnutls_x509_crt_set_activation_time(made->cert, now - DAY / 2 + info->days * DAY));
    succeed(gnutls_x509_crt_set_expiration_time(made->cert, now + DAY / 2 + info->days * DAY));
    set_extensions(made->cert, info);
    succeed(gnutls_x509_crt_sign2(made->cert, signer->cert, signer->key, GNUTLS_DIG_SHA256, 0));
    return made;
}

char *make_creds_folder(void)
{
    static int n;
    g_autofree char *name = g_strdup_printf("creds-%d", n++);
    char *path = temp_path(name);

    g_assert_cmpint(mkdir(path, 0700), ==, 0);
    return path;
}

void write_file(const char *folder, const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);
    GError *error = NULL;

    g_file_set_contents(path, text, -1, &error);
    g_assert_no_error(error);
}

static void append_pem(GString *text, gnutls_datum_t *pem)
{
    g_string_append_len(text, (char *)pem->data, pem->size);
    gnutls_free(pem->data);
}

void write_certs(const char *folder, const char *name, ...)
{
    g_autoptr(GString) text = g_string_new(NULL);
    const TestCert *cert;
    va_list certs;

    va_start(certs, name);
    while ((cert = va_arg(certs, const TestCert *))) {
        gnutls_datum_t pem;

        succeed(gnutls_x509_crt_export2(cert->cert, GNUTLS_X509_FMT_PEM, &pem));
        append_pem(text, &pem);
    }
    va_end(certs);
    write_file(folder, name, text->str);
}

void write_key(const char *folder, const char *name, const TestCert *cert)
{
    write_key_with_password(folder, name, cert, NULL);
}

void write_key_with_password(const char *folder, const char *name, const TestCert *cert,
                             const char *password)
{
    g_autoptr(GString) text = g_string_new(NULL);
    gnutls_datum_t pem;

    succeed(gnutls_x509_privkey_export2_pkcs8(
        cert->key, GNUTLS_X509_FMT_PEM, password,
        password ? GNUTLS_PKCS_PBES2_AES_256 : GNUTLS_PKCS_PLAIN, &pem));
    append_pem(text, &pem);
    write_file(folder, name, text->str);
}

void write_crl(const char *folder, const TestCert *signer, const TestCert *revoked)
{
    g_autoptr(GString) text = g_string_new(NULL);
    gnutls_datum_t pem;
    gnutls_x509_crl_t crl;
    time_t now = time(NULL);

    succeed(gnutls_x509_crl_init(&crl));
    succeed(gnutls_x509_crl_set_version(crl, 2));
    succeed(gnutls_x509_crl_set_this_update(crl, now - DAY / 2));
    succeed(gnutls_x509_crl_set_next_update(crl, now + DAY / 2));
    succeed(gnutls_x509_crl_set_crt(crl, revoked->cert, now - 1));
    succeed(gnutls_x509_crl_sign2(crl, signer->cert, signer->key, GNUTLS_DIG_SHA256, 0));
    succeed(gnutls_x509_crl_export2(crl, GNUTLS_X509_FMT_PEM, &pem));
    gnutls_x509_crl_deinit(crl);
    append_pem(text, &pem);
    write_file(folder, "ca-crl.pem", text->str);
}
