// What rows_embedding.py times: the calls of ksmwalk.hpp in loops, as a module that Python loads.
#include "ksmwalk.hpp"

// On to the end of the full scan, in batches of n; the visits made.
static PyObject *scan(PyObject *, PyObject *args)
{
    PyObject *object;
    long long n, done = 0;
    if (!PyArg_ParseTuple(args, "OL", &object, &n))
        return nullptr;
    ksmwalk::Host host = ksmwalk::Host::of(object);
    {
        ksmwalk::Unlocked here(host);
        const std::uint64_t before = host.world()->cursor->seqnr;
        while (host.world()->cursor->seqnr == before)
            done += host.scan(n);
    }
    return PyLong_FromLongLong(done);
}

// The frames of `n` pages from addr on, a call each; their sum.
static PyObject *translate(PyObject *, PyObject *args)
{
    PyObject *object;
    int mm;
    unsigned long long addr, n, sum = 0;
    if (!PyArg_ParseTuple(args, "OiKK", &object, &mm, &addr, &n))
        return nullptr;
    ksmwalk::Host host = ksmwalk::Host::of(object);
    kw_world *w = host.world();
    for (unsigned long long i = 0; i < n; ++i)
        sum += static_cast<unsigned long long>(kw->translate(w, mm, addr + i * 4096, nullptr, nullptr));
    return PyLong_FromUnsignedLongLong(sum);
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, nullptr}, {"translate", translate, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "embedded", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit_embedded()
{
    return kw_import() == 0 ? PyModule_Create(&module) : nullptr;
}
