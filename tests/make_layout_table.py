import re

h=open('ksmwalk/_layout.h').read()
strip=lambda t: re.sub(r'/\*.*?\*/','',t,flags=re.S)
out=['/* Every field of every struct of _layout.h with its offset, and every constant, for the test that holds layout.py to',' * them. Written from _layout.h by tests/make_layout_table.py. */','#ifndef KSMWALK_LAYOUT_TABLE_H','#define KSMWALK_LAYOUT_TABLE_H','#include <stddef.h>','#include "_layout.h"','typedef struct { const char *record, *field; int64_t value; } kw_fact;','static const kw_fact kw_fields[] = {']
for body,name in re.findall(r'typedef struct \{(.*?)\} (kw_\w+);',h,re.S):
    if name in('kw_tables',): continue
    n=name[3:].upper()
    out.append(f'    {{"{n}", "", sizeof({name})}},')
    for line in strip(body).split(';'):
        line=' '.join(line.split())
        if not line: continue
        for f in line.split(' ',1)[1].split(','):
            f=re.sub(r'\[.*','',f.strip()).lstrip('*')
            out.append(f'    {{"{n}", "{f}", offsetof({name}, {f})}},')
out.append('    {0, 0, 0},\n};\nstatic const kw_fact kw_constants[] = {')
for m in re.findall(r'enum \{(.*?)\};',h,re.S):
    for x in strip(m).split(','):
        x=x.split('=')[0].strip()
        if x: out.append(f'    {{"", "{x}", (int64_t)({x})}},')
for x in re.findall(r'#define ((?:PTE|VM|KW_P)\w+) 0x',h): out.append(f'    {{"", "{x}", (int64_t)({x})}},')
out.append('    {0, 0, 0},\n};\n#endif')
open('ksmwalk/_layout_table.h','w').write('\n'.join(out)+'\n')
