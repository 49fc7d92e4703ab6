/** Agents as files. */
import type { Api } from '../../api';

/** Hand the browser the agent as YAML: a version, or what the farm exports where none is named. */
export async function download(api: Api, name: string, version?: number): Promise<void> {
  const answer = await api.raw('GET', `/agents/${name}/export${version === undefined ? '' : `?version=${version}`}`);
  const address = URL.createObjectURL(await answer.blob());
  const link = document.createElement('a');
  link.href = address;
  link.download = `${name}${version === undefined ? '' : `-v${version}`}.yaml`;
  document.body.append(link);
  link.click();
  link.remove();
  URL.revokeObjectURL(address);
}
