/** Agents as files. */
import type { Api } from '../../api';
import { save } from '../../file';

/** Hand the browser the agent as YAML: a version, or what the farm exports where none is named. */
export async function download(api: Api, name: string, version?: number): Promise<void> {
  const answer = await api.raw('GET', `/agents/${name}/export${version === undefined ? '' : `?version=${version}`}`);
  save(await answer.blob(), `${name}${version === undefined ? '' : `-v${version}`}.yaml`);
}
